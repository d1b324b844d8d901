"""Metrics survive crashes and go on where the checkpoint stands."""

import json
import time

import numpy as np
import pytest

from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.batches import LoadedBatch
from lumina_jax.training.aggregator import Window, Work
from lumina_jax.training.goodput import Ledger
from lumina_jax.training.gradient import TIME_BINS
from lumina_jax.training.metrics import FILE, Metrics, read
from lumina_jax.training.nan_guard import Skips


def write(workdir, start, steps):
  metrics = Metrics(workdir, start)
  for step in steps:
    metrics.write(step, {"loss": 1 / step, "rate": start})
  metrics.close()


def written(workdir):
  return [row["step"] for row in read(workdir)]


def test_what_is_written_can_be_read(tmp_path):
  write(tmp_path, 0, [10, 20])
  assert read(tmp_path) == [
    {"step": 10, "loss": 0.1, "rate": 0},
    {"step": 20, "loss": 0.05, "rate": 0},
  ]


def test_a_folder_without_metrics_has_no_rows(tmp_path):
  assert read(tmp_path) == []


def test_lines_are_on_disk_before_the_run_ends(tmp_path):
  metrics = Metrics(tmp_path, 0)
  metrics.write(10, {"loss": 1.0})
  assert written(tmp_path) == [10]
  metrics.close()


@pytest.mark.parametrize(
  ("checkpoint", "kept"), [(0, []), (25, [10, 20]), (30, [10, 20, 30])]
)
def test_reopening_cuts_back_to_the_checkpoint(tmp_path, checkpoint, kept):
  write(tmp_path, 0, [10, 20, 30, 40])
  Metrics(tmp_path, checkpoint).close()
  assert written(tmp_path) == kept


def test_a_resumed_run_writes_each_step_once(tmp_path):
  write(tmp_path, 0, [10, 20, 30])
  write(tmp_path, 20, [30, 40])
  rows = read(tmp_path)
  assert [row["step"] for row in rows] == [10, 20, 30, 40]
  assert [row["rate"] for row in rows] == [0, 0, 20, 20]


@pytest.mark.parametrize("length", [1, 5, 20])
def test_a_half_written_last_line_is_survived(tmp_path, length):
  write(tmp_path, 0, [10, 20])
  with (tmp_path / FILE).open("a") as file:
    file.write(json.dumps({"step": 30, "loss": 0.123})[:length])
  assert written(tmp_path) == [10, 20]
  write(tmp_path, 20, [30])
  assert written(tmp_path) == [10, 20, 30]
  lines = (tmp_path / FILE).read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_nothing_but_metrics_is_left_behind(tmp_path):
  write(tmp_path, 0, [10])
  write(tmp_path, 10, [20])
  found = {path.name for path in tmp_path.iterdir()}
  assert found == {FILE, "tensorboard"}


def loaded(faults=()):
  return LoadedBatch((), tuple(faults), 10)


def values(loss, **changes):
  """Metrics of a step with two samples, at times 0.05 and 0.95."""
  by_time, samples = np.zeros((2, TIME_BINS))
  by_time[[0, 9]], samples[[0, 9]] = loss, 1
  return {
    "loss": np.float32(loss),
    "grad_norm": np.float32(1),
    "finite": np.True_,
    "samples": np.int32(2),
    "tokens": np.int32(30),
    "loss_by_time": by_time,
    "samples_by_time": samples,
  } | changes


def window(folder, size, limit=3):
  return Window(
    Metrics(folder, 0),
    size,
    Ledger(),
    Skips(limit, lambda _: ["x.jpg"], lambda _: None),
    BadRecordCounter(0.5),
    Work(100.0, 1000.0),
  )


def test_a_window_writes_means_and_its_rest(tmp_path):
  found = window(tmp_path, 2)
  for step, loss in enumerate((4.0, 2.0, 5.0), start=1):
    found.add(step, values(loss), loaded())
  found.finish()
  found.write()
  rows = read(tmp_path)
  assert [(row["step"], row["loss"]) for row in rows] == [(2, 3.0), (3, 5.0)]
  assert rows[0]["loss_by_time"] == [3.0, *[None] * 8, 3.0]


def test_a_skipped_step_is_counted_and_in_no_mean(tmp_path):
  found = window(tmp_path, 3)
  nan = values(np.nan, finite=np.False_, grad_norm=np.float32(np.inf))
  for step, one in enumerate((values(4.0), nan, values(2.0)), start=1):
    found.add(step, one, loaded(["y.jpg: cut short"] if step == 2 else ()))
  found.finish()
  (row,) = read(tmp_path)
  assert (row["loss"], row["grad_norm"]) == (3.0, 1.0)
  assert (row["skipped"], row["bad_records"]) == (1, 1)
  assert row["loss_by_time"][0] == 3.0
  assert found.goodput <= 2 / 3


def test_a_window_of_skipped_steps_has_no_loss(tmp_path):
  found = window(tmp_path, 1)
  nan = values(np.nan, finite=np.False_)
  found.add(1, nan, loaded())
  found.finish()
  (row,) = read(tmp_path)
  assert row["loss"] is None and row["loss_by_time"] == [None] * TIME_BINS


def test_rates_are_of_steps_without_the_first_and_without_pictures(tmp_path):
  found = window(tmp_path, 5)
  for step in range(1, 6):
    found.add(step, values(1.0), loaded())
    # Compiling, pictures, then steps of 20 ms.
    with found.ledger.spend("sampling"):
      time.sleep(0.2 if step == 2 else 0)
    time.sleep(0.3 if step == 1 else 0.02)
  found.finish()
  (row,) = read(tmp_path)
  speed = row["steps_per_second"]
  assert 15 < speed < 60  # 4 steps, 80 ms.
  assert row["examples_per_second"] == pytest.approx(2 * speed)
  assert row["tokens_per_second"] == pytest.approx(30 * speed)
  assert row["mfu"] == pytest.approx(speed * 100 / 1000)
  assert 0 < row["goodput"] < 0.5


def test_a_disk_that_is_full_for_a_while_loses_no_line(tmp_path, monkeypatch):
  metrics = Metrics(tmp_path, 0)

  def full(line):
    raise OSError("no space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(metrics._lines, "append", full)
    metrics.write(1, {"loss": 2.0})
    metrics.flush()
  assert written(tmp_path) == []
  metrics.write(2, {"loss": 1.0})
  metrics.close()
  assert written(tmp_path) == [1, 2]
