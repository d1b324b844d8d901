"""The files of a run in an object store: whole after any failure."""

import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.configs import small_config
from support.store import BUCKET, WAYS, accidents, mounted

from lumina_jax import evaluate, train
from lumina_jax.files import atomic, jsonl
from lumina_jax.media import image
from lumina_jax.runs import record, report
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import data, metrics, run_config
from lumina_jax.training.metrics import MetricsWriter
from lumina_jax.training.restore import has_checkpoint

RUN = epath.Path(BUCKET) / "run"
KEY = "bucket/run/"
TABLE = {"title": "Accuracy", "columns": ["canvas"], "rows": [["0.750"]]}
EVALUATION = {"step": 2, "loss": 1.0, "tables": [TABLE]}


@pytest.fixture
def store(monkeypatch):
  with mounted(monkeypatch) as store:
    yield store


@pytest.fixture
def eager(monkeypatch):
  """A store gets every row at once."""
  monkeypatch.setattr(jsonl.Writer, "SECONDS", 0.0)
  monkeypatch.setattr(jsonl.Writer, "SHARE", 0)


def grey(value, side=80):
  return Image.fromarray(np.full((side, side), value, np.uint8))


def png(path):
  data = io.BytesIO(path.read_bytes())
  image = Image.open(data)
  image.load()
  return image


def names(store):
  return {name.removeprefix(KEY) for name in store.objects}


def log(start, stop, saved=None):
  """Logs steps of a run that resumes; each third step has a checkpoint."""
  out = MetricsWriter(RUN, start)
  for step in range(start + 1, stop + 1):
    out.write(step, {"loss": 1 / step})
    if step % 3 == 0:
      out.flush()
      if saved is not None:
        saved.append(step)
  out.close()


def test_a_config_is_the_old_or_the_new_one(store):
  old, new = small_config(), small_config(training__steps=8)
  run_config.save(old, RUN)
  seen = set()
  for _ in accidents(store, lambda: run_config.save(new, RUN)):
    found = run_config.load(RUN)
    assert found in (old, new)
    seen.add(found.training.steps)
    assert names(store) == {run_config.FILE}
  assert seen == {old.training.steps, 8}


def test_a_record_never_loses_a_start(store):
  record.add_start(RUN, seed=1, step=0)
  counts = set()
  for how in accidents(store, lambda: record.add_start(RUN, seed=2, step=7)):
    starts = record.read(RUN)
    assert [s["from_step"] for s in starts] in ([0], [0, 7]), how
    counts.add(len(starts))
    assert names(store) == {record.FILE}
  assert counts == {1, 2}


def test_a_sheet_is_whole_or_missing(store):
  path = RUN / "samples" / "a.png"
  image.save(grey(10), path)
  seen = set()
  texts = {"prompt": "seven"}
  for _ in accidents(store, lambda: image.save(grey(20), path, texts)):
    seen.add(np.asarray(png(path)).max())
    assert names(store) == {"samples/a.png"}
  assert seen == {10, 20}
  image.save(grey(20), path, texts)
  assert png(path).text == texts


def test_a_sheet_that_cannot_be_encoded_leaves_the_old_one(store, monkeypatch):
  path = RUN / "a.png"
  image.save(grey(10), path)
  whole = path.read_bytes()

  def half(image, file, **_):
    file.write(whole[: len(whole) // 2])
    raise ValueError("no such mode")

  monkeypatch.setattr(Image.Image, "save", half)
  with pytest.raises(ValueError, match="no such mode"):
    image.save(grey(20), path)
  assert path.read_bytes() == whole


@pytest.mark.parametrize("every_line", [True, False])
def test_metrics_after_any_failure_continue_at_the_checkpoint(
  store, monkeypatch, every_line
):
  if every_line:
    monkeypatch.setattr(jsonl.Writer, "SECONDS", 0.0)
    monkeypatch.setattr(jsonl.Writer, "SHARE", 0)
  saved = [0]

  def run():
    saved[:] = [0]
    log(0, 8, saved)

  wanted = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
  for how in accidents(store, run):
    rows = metrics.read(RUN)
    assert rows == wanted[: len(rows)], how
    assert len(rows) >= saved[-1], how
    log(saved[-1], 8)
    assert metrics.read(RUN) == wanted, how
    assert names(store) == {metrics.FILE}


def test_no_failure_at_a_resume_loses_rows_before_the_checkpoint(store):
  log(0, 5)
  wanted = [{"step": step, "loss": 1 / step} for step in range(1, 6)]
  counts = set()
  for how in accidents(store, lambda: MetricsWriter(RUN, 3)):
    rows = metrics.read(RUN)
    assert rows == wanted[: len(rows)], how
    assert len(rows) >= 3, how
    counts.add(len(rows))
  assert counts == {3, 5}


def test_an_evaluation_is_the_old_or_the_new_one(store):
  run_config.save(small_config(), RUN)
  evaluate.write(EVALUATION, RUN)
  new = EVALUATION | {"loss": 2.0}
  seen = set()
  for _ in accidents(store, lambda: evaluate.write(new, RUN)):
    found = json.loads((RUN / report.EVALUATION).read_text())
    assert found in (EVALUATION, new)
    seen.add(found["loss"])
    page = (RUN / report.FILE).read_text()
    assert page.endswith("</html>\n")
    assert "0.750" in page
    assert names(store) == {run_config.FILE, report.EVALUATION, report.FILE}
  assert seen == {1.0, 2.0}


def test_a_report_shows_what_lies_in_the_store(store, eager):
  run_config.save(small_config(), RUN)
  record.add_start(RUN, seed=1, step=0)
  log(0, 3)
  for step in (1, 2):
    image.save(grey(step), RUN / "samples" / f"step_{step:06d}.png")
  report.write(RUN)
  old = (RUN / report.FILE).read_text()
  assert "at step 3" in old
  assert old.index("samples at step 2") < old.index("samples at step 1")
  image.save(grey(3), RUN / "samples" / "step_000003.png")
  pages = set()
  for _ in accidents(store, lambda: report.write(RUN), ways=WAYS[:2]):
    pages.add((RUN / report.FILE).read_text())
  assert old in pages
  assert len(pages) == 2
  assert all(page.endswith("</html>\n") for page in pages)


def test_a_store_is_claimed_like_a_disk(store):
  config = small_config()
  assert workdirs.claim(config, str(RUN), False) == RUN
  assert not store.objects
  run_config.save(config, RUN)
  assert not has_checkpoint(RUN)
  store.objects[f"{KEY}checkpoints/3/ema/array"] = b""
  assert not has_checkpoint(RUN)  # It may have died while saving.
  store.objects[f"{KEY}checkpoints/3/commit_success.txt"] = b""
  assert has_checkpoint(RUN)
  other = small_config(training__steps=8)
  with pytest.raises(ValueError, match=r"training\.steps: 6 -> 8"):
    workdirs.claim(other, RUN, False)
  assert workdirs.claim(other, RUN, True) == RUN


def test_a_store_that_refuses_is_named(store):
  store.revive(fails=0, way="refusal")
  with pytest.raises(OSError, match=r"cannot write to gs://bucket/run.*503"):
    atomic.make_folder(RUN)


class InMemory:
  """Replaces checkpoints, which C++ writes to a store."""

  rows: tuple[int, ...] = ()

  def __init__(self, *_, **__):
    """Takes the arguments of checkpoints."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    """Has nothing to close."""

  def restore(self, _):
    return None

  def save(self, _):
    InMemory.rows = tuple(row["step"] for row in metrics.read(RUN))

  def __getattr__(self, name):
    return lambda *_, **__: None


@pytest.mark.e2e
@pytest.mark.usefixtures("shared_programs")
def test_a_run_writes_all_else_into_the_store(store, monkeypatch):
  monkeypatch.setattr(train, "Checkpoints", InMemory)
  monkeypatch.setattr(InMemory, "rows", ())
  config = small_config(training__steps=3, training__checkpoint_every=1)
  folder = workdirs.claim(config, str(RUN), False)
  train.train(config, folder)
  assert names(store) == {
    run_config.FILE,
    record.FILE,
    metrics.FILE,
    report.FILE,
    data.FINGERPRINT,
    "samples/data.png",
    "samples/step_000003.png",
  }
  assert run_config.load(RUN) == config
  assert InMemory.rows == (1, 2, 3)
  assert [row["step"] for row in metrics.read(RUN)] == [1, 2, 3]
  assert png(RUN / "samples" / "step_000003.png").width > 1
