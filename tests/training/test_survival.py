"""A whole run survives: full disks, bad batches, being told to stop."""

import contextlib
import dataclasses
import resource

import jax
import numpy as np
import pytest
from etils import epath
from support.configs import small_config

from data_pipelines.digits import DigitCanvases
from data_pipelines.source import BadRecord
from lumina_jax import train as training
from lumina_jax.training import metrics
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.restore import FOLDER, read_ema
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.state import TrainState


@contextlib.contextmanager
def files_of_at_most(size):
  """No file may grow beyond: as on a disk with no more room."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saved(workdir):
  names = (path.name for path in (workdir / FOLDER).iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def state(step):
  values = jax.random.normal(jax.random.key(step), (256, 1024))
  tree = {"kernel": values}
  return TrainState(np.int32(step), np.int32(0), tree, tree, tree)


def test_a_full_disk_loses_one_checkpoint_and_the_next_is_saved(
  tmp_path, caplog
):
  with Checkpoints(tmp_path, keep=2) as store:
    for step in (1, 2):
      store.save(state(step))
    store.finish()
    with files_of_at_most(100_000):
      store.save(state(3))  # Training goes on.
      with pytest.raises(
        OSError, match=r"checkpoint 3 .* the newest there is 2"
      ):
        store.finish()
    assert "CHECKPOINT 3 WAS NOT WRITTEN" in caplog.text
    assert saved(tmp_path) == [1, 2]
    store.save(state(4))
    store.finish()
  assert saved(tmp_path) == [2, 4]
  step, ema = read_ema(tmp_path, jax.eval_shape(lambda: state(1).ema))
  assert step == 4
  np.testing.assert_array_equal(ema["kernel"], state(4).ema["kernel"])


def test_a_run_on_a_disk_that_is_full_for_a_while_goes_on(
  tmp_path, monkeypatch, caplog
):
  """Full at the checkpoint of step 2, and room again at that of step 4."""
  config, save = small_config(), Checkpoints.save

  def save_on_full_disk(self, state):
    full = int(state.step) == 2
    with files_of_at_most(20_000) if full else contextlib.nullcontext():
      save(self, state)
      if full:
        self._settle()

  monkeypatch.setattr(Checkpoints, "save", save_on_full_disk)
  final = training.train(config, epath.Path(tmp_path))
  assert int(final.step) == 6 and saved(tmp_path) == [4, 6]
  assert "CHECKPOINT 2 WAS NOT WRITTEN" in caplog.text
  assert [row["step"] for row in metrics.read(tmp_path)] == [*range(1, 7)]


def test_a_bad_batch_is_skipped_and_a_broken_record_left_out(
  tmp_path, monkeypatch, caplog
):
  sample, seen = DigitCanvases.sample, []

  def some_are_bad(self, draw):
    found = sample(self, draw)
    seen.append(draw)
    if draw.record == 7:
      raise BadRecord("canvas 7: cut short")
    if draw.record == 11:
      return found._replace(patches=found.patches * np.nan)
    return found

  monkeypatch.setattr(DigitCanvases, "sample", some_are_bad)
  final = training.train(small_config(), epath.Path(tmp_path))
  rows = metrics.read(tmp_path)
  assert {7, 11} <= {draw.record for draw in seen}
  assert rows[-1]["skipped"] == int(final.skipped) >= 1
  assert rows[-1]["bad_records"] >= 1 and "canvas 7: cut short" in caplog.text
  assert "was skipped: loss nan" in caplog.text
  for leaf in jax.tree.leaves((final.params, final.ema, final.opt_state)):
    assert np.isfinite(leaf).all()


def test_batches_that_are_all_bad_end_the_run_and_name_the_records(
  tmp_path, monkeypatch
):
  sample = DigitCanvases.sample

  def bad_later(self, draw):
    found = sample(self, draw)
    late = draw.epoch > 0  # An epoch is two batches or so.
    return found._replace(patches=found.patches * np.nan) if late else found

  monkeypatch.setattr(DigitCanvases, "sample", bad_later)
  config = small_config()
  plan = dataclasses.replace(config.training, max_skipped=3, steps=20)
  with pytest.raises(FloatingPointError) as raised:
    training.train(
      dataclasses.replace(config, training=plan), epath.Path(tmp_path)
    )
  message = str(raised.value)
  assert "3 updates in a row" in message and "canvas " in message
  good = int(
    message.split("the last checkpoint before it is ")[1].split(".")[0]
  )
  assert good in saved(tmp_path)


@pytest.mark.parametrize(
  "poll", [pytest.param(2, marks=[pytest.mark.slow, pytest.mark.long]), 3]
)
def test_told_to_stop_after_a_step_or_while_drawing(
  poll, tmp_path, monkeypatch
):
  """Polls: after step 1, after step 2, then between pictures of step 2."""
  config = small_config(training__sample_every=2)
  check, polls = Preemption.check, []

  def told(self, *_):
    polls.append(None)
    self._told = len(polls) >= poll
    check(self)

  with monkeypatch.context() as patch:
    patch.setattr(Preemption, "check", told)
    with pytest.raises(Preempted):
      training.train(config, epath.Path(tmp_path))
  assert len(polls) == poll and saved(tmp_path) == [2]
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
  assert not list((tmp_path / "samples").glob("step_*"))
  whole = tmp_path / "whole"
  again = training.train(config, epath.Path(tmp_path))
  straight = training.train(config, epath.Path(whole))
  jax.tree.map(np.testing.assert_array_equal, again, straight)


def test_a_disk_that_is_full_for_metrics_does_not_hang(tmp_path, caplog):
  """TensorBoard's thread ends at its first fault: nobody may wait for it."""
  written = metrics.Metrics(tmp_path, 0)
  with files_of_at_most(1):
    for step in range(1, 200):
      written.write(step, {"loss": 1.0, "rate": 2.0})
  written.close()
  assert "TensorBoard's files end here" in caplog.text
  rows = metrics.read(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, 200))


def test_a_report_that_cannot_be_written_ends_no_run(
  tmp_path, monkeypatch, caplog
):
  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(training.report, "write", full)
  state = training.train(small_config(), epath.Path(tmp_path))
  assert int(state.step) == 6 and "the report was not written" in caplog.text


def test_a_run_does_not_go_on_with_other_data_unless_told(tmp_path):
  folder = epath.Path(tmp_path)
  training.train(small_config(), folder)
  longer = small_config(training__steps=8, data__records_per_canvas=20)
  with pytest.raises(ValueError, match=r"not those that the run .* began with"):
    training.train(longer, folder)
  assert saved(tmp_path) == [2, 4, 6]
  state = training.train(longer, folder, allow_change=True)
  assert int(state.step) == 8
