"""JSON Lines survive crashes and rarely rewrite an object in a store."""

import os
import resource
import subprocess
import sys

import pytest
from etils import epath
from support.store import BUCKET, accidents, mounted

from lumina_jax.files import atomic, jsonl
from lumina_jax.files.jsonl import Writer

PATH = epath.Path(BUCKET) / "run" / "rows.jsonl"


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


def rows(*values):
  return [{"value": value} for value in values]


def row(value):
  return {"value": value}


def stored(path=PATH):
  return [row["value"] for row in jsonl.read(path)]


def test_a_disk_has_each_line_at_once(tmp_path):
  path = tmp_path / "rows.jsonl"
  writer = Writer(path, rows(*["a", "b"]))
  assert stored(path) == ["a", "b"]
  for number in range(3):
    writer.append(row(f"{number} ä"))
    assert stored(path) == ["a", "b", *(f"{n} ä" for n in range(number + 1))]
    writer.flush()
  Writer(path, rows(*["c"]))
  assert stored(path) == ["c"]
  assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_full_disk_keeps_the_lines_before(tmp_path):
  path = tmp_path / "rows.jsonl"
  writer = Writer(path, rows(*["a" * 40]))
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
  try:
    with pytest.raises(OSError, match=r"cannot append to .*rows.jsonl"):
      writer.append(row("b" * 40))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  assert stored(path) == ["a" * 40]
  writer.append(row("c"))
  assert stored(path) == ["a" * 40, "c"]


def test_a_killed_writer_leaves_all_lines_but_the_last_whole(tmp_path):
  path = tmp_path / "rows.jsonl"
  program = (
    "import itertools; from lumina_jax.files.jsonl import Writer\n"
    f"writer = Writer({str(path)!r})\n"
    "for n in itertools.count():\n"
    "  writer.append({'value': n}); print(n, flush=True)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
  )
  with child:
    said = [int(child.stdout.readline()) for _ in range(50)]
    child.kill()
    said += [int(line) for line in child.stdout.read().splitlines()[:-1]]
  assert stored(path)[: len(said)] == said


def test_a_store_is_written_at_most_every_so_often(store, clock):
  writer = Writer(PATH)
  first = store.requests
  for second in range(300):
    clock.now = float(second)
    writer.append(row(str(second)))
  assert store.requests - first >= 300 / Writer.SECONDS - 1
  assert store.requests - first <= 300 / Writer.SECONDS
  assert len(stored()) > 300 - Writer.SECONDS
  writer.flush()
  assert stored() == [str(second) for second in range(300)]


def test_slow_writes_take_one_percent_of_the_time(store, clock, monkeypatch):
  writes = []

  def slow(path, text):
    clock.now += 7.0
    writes.append(len(text.splitlines()))

  monkeypatch.setattr(atomic, "write_text", slow)
  writer = Writer(PATH)
  while clock.now < 7000:
    clock.now += 10.0
    writer.append(row("x"))
  assert len(writes) == 1 + 9
  assert sorted(writes) == writes


def test_a_flush_without_news_asks_nothing_of_a_store(store):
  writer = Writer(PATH, rows(*["a"]))
  requests = store.requests
  writer.flush()
  assert store.requests == requests


def test_what_was_flushed_outlives_any_accident(store, clock):
  flushed = []

  def run():
    flushed.clear()
    writer = Writer(PATH, rows(*["a"]))
    for number in range(6):
      clock.now += Writer.SECONDS / 2
      writer.append(row(str(number)))
      if number == 2:
        writer.flush()
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
  writer = Writer(PATH, rows(*["a"]))
  clock.now += Writer.SECONDS
  store.revive(fails=0, way="refusal")
  writer.append(row("b"))
  assert "cannot write gs://bucket/run/rows.jsonl" in caplog.text
  assert stored() == ["a"]
  clock.now += Writer.SECONDS
  writer.append(row("c"))
  assert stored() == ["a", "b", "c"]


def test_a_refused_flush_is_an_error_and_may_be_repeated(store, clock):
  writer = Writer(PATH, rows(*["a"]))
  writer.append(row("b"))
  store.revive(fails=0, way="refusal")
  with pytest.raises(OSError, match="503"):
    writer.flush()
  writer.flush()
  assert stored() == ["a", "b"]
