"""A file of lines survives deaths and is seldom written to a store."""

import os
import resource
import subprocess
import sys

import pytest
from etils import epath
from fake_store import BUCKET, accidents, mounted

from lumina_jax.files import atomic, jsonl
from lumina_jax.files.jsonl import Lines

PATH = epath.Path(BUCKET) / "run" / "lines.txt"


class Clock:
  """Time that passes when told to."""

  def __init__(self):
    self.now = 0.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(jsonl.time, "monotonic", clock.monotonic)
  return clock


@pytest.fixture
def store(monkeypatch):
  with mounted(monkeypatch) as store:
    yield store


def stored(path=PATH):
  return (atomic.read_text(path) or "").splitlines()


def test_a_disk_has_each_line_at_once(tmp_path):
  path = tmp_path / "lines.txt"
  lines = Lines(path, ["a", "b"])
  assert stored(path) == ["a", "b"]
  for number in range(3):
    lines.append(f"{number} ä")
    assert stored(path) == ["a", "b", *(f"{n} ä" for n in range(number + 1))]
    lines.flush()
  Lines(path, ["c"])
  assert stored(path) == ["c"]
  assert os.listdir(tmp_path) == ["lines.txt"]


def test_a_full_disk_keeps_the_lines_before(tmp_path):
  path = tmp_path / "lines.txt"
  lines = Lines(path, ["a" * 50])
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
  try:
    with pytest.raises(OSError, match=r"cannot append to .*lines.txt"):
      lines.append("b" * 50)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  assert stored(path) == ["a" * 50]
  lines.append("c")
  assert stored(path) == ["a" * 50, "c"]


def test_a_killed_writer_leaves_all_lines_but_the_last_whole(tmp_path):
  path = tmp_path / "lines.txt"
  program = (
    "import itertools; from lumina_jax.files.jsonl import Lines\n"
    f"lines = Lines({str(path)!r})\n"
    "for n in itertools.count():\n"
    "  lines.append(str(n)); print(n, flush=True)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
  )
  with child:
    said = [int(child.stdout.readline()) for _ in range(50)]
    child.kill()
    said += [int(line) for line in child.stdout.read().splitlines()[:-1]]
  assert [int(line) for line in stored(path)][: len(said)] == said


def test_a_store_is_written_at_most_every_so_often(store, clock):
  lines = Lines(PATH)
  first = store.requests
  for second in range(300):
    clock.now = float(second)
    lines.append(str(second))
  assert store.requests - first >= 300 / Lines.SECONDS - 1
  assert store.requests - first <= 300 / Lines.SECONDS
  assert len(stored()) > 300 - Lines.SECONDS
  lines.flush()
  assert stored() == [str(second) for second in range(300)]


def test_slow_writes_take_one_percent_of_the_time(store, clock, monkeypatch):
  writes = []

  def slow(path, text):
    clock.now += 7.0
    writes.append(len(text.splitlines()))

  monkeypatch.setattr(atomic, "write_text", slow)
  lines = Lines(PATH)
  while clock.now < 7000:
    clock.now += 10.0
    lines.append("x")
  assert len(writes) == 1 + 9
  assert sorted(writes) == writes


def test_a_flush_without_news_asks_nothing_of_a_store(store):
  lines = Lines(PATH, ["a"])
  requests = store.requests
  lines.flush()
  assert store.requests == requests


def test_what_was_flushed_outlives_any_accident(store, clock):
  flushed = []

  def run():
    flushed.clear()
    lines = Lines(PATH, ["a"])
    for number in range(6):
      clock.now += Lines.SECONDS / 2
      lines.append(str(number))
      if number == 2:
        lines.flush()
        flushed.append(True)

  every = ["a", *"012345"]
  counts = set()
  for _ in accidents(store, run):
    found = stored()
    assert found == every[: len(found)]
    assert len(found) >= (4 if flushed else 0)
    counts.add(len(found))
  assert {0, 1, 4}.issubset(counts)


def test_a_refusal_costs_no_line(store, clock, caplog):
  lines = Lines(PATH, ["a"])
  clock.now += Lines.SECONDS
  store.revive(fails=0, way="refusal")
  lines.append("b")
  assert "cannot write gs://bucket/run/lines.txt" in caplog.text
  assert stored() == ["a"]
  clock.now += Lines.SECONDS
  lines.append("c")
  assert stored() == ["a", "b", "c"]


def test_a_refused_flush_is_an_error_and_may_be_repeated(store, clock):
  lines = Lines(PATH, ["a"])
  lines.append("b")
  store.revive(fails=0, way="refusal")
  with pytest.raises(OSError, match="503"):
    lines.flush()
  lines.flush()
  assert stored() == ["a", "b"]
