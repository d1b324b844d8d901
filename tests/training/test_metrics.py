"""Metrics survive crashes and go on where the checkpoint stands."""

import json

import pytest

from lumina_jax.training.metrics import FILE, Metrics, Window, read


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


def test_a_bucket_that_cannot_append_keeps_all_rows(tmp_path, monkeypatch):
  plain = Metrics(tmp_path, 0)
  plain.write(1, {"loss": 2.0})
  plain.close()
  bucket = Metrics(tmp_path, 1)
  monkeypatch.setattr(bucket, "_local", False)
  bucket.write(2, {"loss": 1.0})
  bucket.close()
  assert [row["step"] for row in read(tmp_path)] == [1, 2]


def test_a_window_writes_means_and_its_rest(tmp_path):
  out = Metrics(tmp_path, 0)
  window = Window(out, 2)
  for step, loss in enumerate((4.0, 2.0, 5.0), start=1):
    window.add(step, {"loss": loss, "grad_norm": 1.0})
  window.finish()
  window.write()
  out.close()
  rows = read(tmp_path)
  assert [(row["step"], row["loss"]) for row in rows] == [(2, 3.0), (3, 5.0)]
