"""Metrics survive crashes, continue at the checkpoint, and are aggregated."""

import json
import time

import numpy as np
import pytest

from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.batches import LoadedBatch
from lumina_jax.training.aggregator import MetricsAggregator
from lumina_jax.training.goodput import GoodputTracker
from lumina_jax.training.gradient import TIME_BINS
from lumina_jax.training.metrics import FILE, MetricsWriter, read
from lumina_jax.training.nan_guard import NanGuard


def write(workdir, start, steps):
  with MetricsWriter(workdir, start) as writer:
    for step in steps:
      writer.write(step, {"loss": 1 / step, "rate": start})


def steps_in(workdir):
  return [row["step"] for row in read(workdir)]


def test_rows_are_on_disk_at_once_and_can_be_read(tmp_path):
  assert read(tmp_path) == []
  writer = MetricsWriter(tmp_path, 0)
  writer.write(10, {"loss": 0.1, "bins": [1.0, None]})
  assert read(tmp_path) == [{"step": 10, "loss": 0.1, "bins": [1.0, None]}]
  writer.close()
  assert {path.name for path in tmp_path.iterdir()} == {FILE, "tensorboard"}


@pytest.mark.parametrize(
  ("checkpoint", "kept"), [(0, []), (25, [10, 20]), (30, [10, 20, 30])]
)
def test_a_resumed_run_first_drops_rows_after_its_checkpoint(
  tmp_path, checkpoint, kept
):
  write(tmp_path, 0, [10, 20, 30, 40])
  write(tmp_path, checkpoint, [50])
  rows = read(tmp_path)
  assert [row["step"] for row in rows] == [*kept, 50]
  assert [row["rate"] for row in rows] == [0] * len(kept) + [checkpoint]


@pytest.mark.parametrize("length", [1, 20])
def test_a_row_cut_short_by_a_crash_is_ignored(tmp_path, length):
  write(tmp_path, 0, [10, 20])
  with (tmp_path / FILE).open("a") as file:
    file.write(json.dumps({"step": 30, "loss": 0.123})[:length])
  assert steps_in(tmp_path) == [10, 20]
  write(tmp_path, 20, [30])
  lines = (tmp_path / FILE).read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_a_disk_that_is_full_for_a_while_loses_no_row(tmp_path, monkeypatch):
  writer = MetricsWriter(tmp_path, 0)

  def full(row):
    raise OSError("no space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(writer._rows, "append", full)
    writer.write(1, {"loss": 2.0})
    writer.flush()
  assert steps_in(tmp_path) == []
  writer.write(2, {"loss": 1.0})
  writer.close()
  assert steps_in(tmp_path) == [1, 2]


def loaded(bad=()):
  return LoadedBatch((), tuple(bad), 10)


def metrics(loss, **changes):
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


SKIPPED = metrics(np.nan, finite=np.False_, grad_norm=np.float32(np.inf))


def make_aggregator(folder, log_every):
  return MetricsAggregator(
    MetricsWriter(folder, 0),
    log_every,
    GoodputTracker(),
    NanGuard(3, lambda _: ["x.jpg"], lambda _: None),
    BadRecordCounter(0.5),
    100.0 / 1000.0,
  )


def test_a_row_holds_means_and_the_last_row_the_rest(tmp_path):
  aggregator = make_aggregator(tmp_path, 2)
  for step, loss in enumerate((4.0, 2.0, 5.0), start=1):
    aggregator.add(step, metrics(loss), loaded())
  aggregator.fetch()
  aggregator.write()
  rows = read(tmp_path)
  assert [(row["step"], row["loss"]) for row in rows] == [(2, 3.0), (3, 5.0)]
  assert rows[0]["loss_by_time"] == [3.0, *[None] * 8, 3.0]


def test_a_skipped_step_is_counted_and_not_averaged(tmp_path):
  aggregator = make_aggregator(tmp_path, 3)
  for step, one in enumerate((metrics(4.0), SKIPPED, metrics(2.0)), start=1):
    bad = ["y.jpg: cut short"] if step == 2 else ()
    aggregator.add(step, one, loaded(bad))
  aggregator.fetch()
  (row,) = read(tmp_path)
  assert (row["loss"], row["grad_norm"]) == (3.0, 1.0)
  assert (row["skipped"], row["bad_records"]) == (1, 1)
  assert row["loss_by_time"][0] == 3.0
  assert aggregator.goodput_share <= 2 / 3


def test_a_row_of_skipped_steps_has_no_loss(tmp_path):
  aggregator = make_aggregator(tmp_path, 1)
  aggregator.add(1, SKIPPED, loaded())
  aggregator.fetch()
  (row,) = read(tmp_path)
  assert row["loss"] is None and row["loss_by_time"] == [None] * TIME_BINS


def test_rates_leave_out_compiling_and_sampling(tmp_path):
  aggregator = make_aggregator(tmp_path, 5)
  for step in range(1, 6):
    aggregator.add(step, metrics(1.0), loaded())
    # Compiling, samples, then steps of 20 ms.
    with aggregator.goodput.track("sampling"):
      time.sleep(0.2 if step == 2 else 0)
    time.sleep(0.3 if step == 1 else 0.02)
  aggregator.fetch()
  (row,) = read(tmp_path)
  speed = row["steps_per_second"]
  assert 15 < speed < 60  # 4 steps, 80 ms.
  assert row["examples_per_second"] == pytest.approx(2 * speed)
  assert row["tokens_per_second"] == pytest.approx(30 * speed)
  assert row["mfu"] == pytest.approx(speed * 100 / 1000)
  assert 0 < row["goodput"] < 0.5


def test_all_time_is_counted_once():
  goodput = GoodputTracker()
  with goodput.track("sampling"):
    time.sleep(0.02)
  assert goodput.training == 0
  assert goodput.start_training() and not goodput.start_training()
  for _ in goodput.track_data(iter([1, 2])):
    time.sleep(0.05)
  counted = goodput.training + sum(goodput.badput.values())
  assert counted == pytest.approx(goodput.total, abs=0.005)
  assert goodput.training >= 0.1 and goodput.badput["sampling"] >= 0.02
  assert "training" in goodput.summary()
