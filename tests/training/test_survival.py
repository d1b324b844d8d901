"""Runs survive full disks, bad batches and SIGTERM."""

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
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import previews, report
from lumina_jax.train import train
from lumina_jax.training import metrics
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.restore import FOLDER, read_ema
from lumina_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("shared_programs")


@contextlib.contextmanager
def files_of_at_most(size):
  """No file may grow beyond this size, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saved_steps(workdir):
  names = (path.name for path in (workdir / FOLDER).iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def state(step):
  values = jax.random.normal(jax.random.key(step), (256, 1024))
  tree = {"kernel": values}
  return TrainState(np.int32(step), np.int32(0), tree, tree, tree)


def test_a_full_disk_loses_one_checkpoint_and_the_next_is_saved(
  tmp_path, caplog
):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(state(step))
    checkpoints.finish()
    with files_of_at_most(100_000):
      checkpoints.save(state(3))  # Training continues.
      with pytest.raises(
        OSError, match=r"checkpoint 3 .* the newest there is 2"
      ):
        checkpoints.finish()
    assert "CHECKPOINT 3 WAS NOT WRITTEN" in caplog.text
    assert saved_steps(tmp_path) == [1, 2]
    checkpoints.save(state(4))
    checkpoints.finish()
  assert saved_steps(tmp_path) == [2, 4]
  step, ema = read_ema(tmp_path, jax.eval_shape(lambda: state(1).ema))
  assert step == 4
  np.testing.assert_array_equal(ema["kernel"], state(4).ema["kernel"])


def test_a_run_continues_while_nothing_can_be_written(
  tmp_path, monkeypatch, caplog
):
  """The disk is full at the checkpoint of step 2, for samples and reports."""
  save = Checkpoints.save

  def save_on_full_disk(self, state):
    full = int(state.step) == 2
    with files_of_at_most(20_000) if full else contextlib.nullcontext():
      save(self, state)
      if full:
        self._wait()

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(Checkpoints, "save", save_on_full_disk)
  monkeypatch.setattr(report, "write", full)
  monkeypatch.setattr(previews.image, "save", full)
  final = train(small_config(), epath.Path(tmp_path))
  assert int(final.step) == 6 and saved_steps(tmp_path) == [4, 6]
  assert "CHECKPOINT 2 WAS NOT WRITTEN" in caplog.text
  assert "the report was not written" in caplog.text
  assert "step_000006.png was not written" in caplog.text
  assert [row["step"] for row in metrics.read(tmp_path)] == [*range(1, 7)]


def test_a_bad_batch_is_skipped_and_a_bad_record_left_out(
  tmp_path, monkeypatch, caplog
):
  sample, records = DigitCanvases.sample, set()

  def some_are_bad(self, draw):
    records.add(draw.record)
    if draw.record == 7:
      raise BadRecord("canvas 7: cut short")
    found = sample(self, draw)
    if draw.record == 11:
      return found._replace(patches=found.patches * np.nan)
    return found

  monkeypatch.setattr(DigitCanvases, "sample", some_are_bad)
  final = train(small_config(), epath.Path(tmp_path))
  rows = metrics.read(tmp_path)
  assert {7, 11} <= records
  assert rows[-1]["skipped"] == int(final.skipped) >= 1
  assert rows[-1]["bad_records"] >= 1 and "canvas 7: cut short" in caplog.text
  assert "was skipped: loss nan" in caplog.text
  for leaf in jax.tree.leaves((final.params, final.ema, final.opt_state)):
    assert np.isfinite(leaf).all()


def test_bad_batches_in_a_row_end_the_run_and_name_the_records(
  tmp_path, monkeypatch
):
  sample = DigitCanvases.sample

  def bad_later(self, draw):
    found = sample(self, draw)
    later = draw.epoch > 0  # An epoch has about two batches.
    return found._replace(patches=found.patches * np.nan) if later else found

  monkeypatch.setattr(DigitCanvases, "sample", bad_later)
  config = small_config()
  plan = dataclasses.replace(config.training, max_skipped=2)
  with pytest.raises(FloatingPointError) as raised:
    train(dataclasses.replace(config, training=plan), epath.Path(tmp_path))
  message = str(raised.value)
  assert "2 updates in a row" in message and "canvas " in message
  assert "learning_rate" in message
  newest = message.split("the last checkpoint before it is ")[1].split(".")[0]
  assert int(newest) in saved_steps(tmp_path)
  params = LuminaPipeline.from_workdir(tmp_path).params
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("poll", [2, 3])
def test_preempted_after_a_step_or_while_sampling(
  poll, tmp_path, monkeypatch, trained_run
):
  """Polls: after step 1, after step 2, then between samples of step 2."""
  config = small_config(training__sample_every=2)
  check, polls = Preemption.poll, []

  def signalled(self, *_):
    polls.append(None)
    self._signalled = len(polls) >= poll
    check(self)

  with monkeypatch.context() as patch:
    patch.setattr(Preemption, "poll", signalled)
    with pytest.raises(Preempted):
      train(config, epath.Path(tmp_path))
  assert len(polls) == poll and saved_steps(tmp_path) == [2]
  assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
  assert not list((tmp_path / "samples").glob("step_*"))
  train(config, epath.Path(tmp_path))
  # The run of another process, which never stopped.
  resumed, whole = (
    LuminaPipeline.from_workdir(folder).params
    for folder in (tmp_path, trained_run.workdir)
  )
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.filterwarnings(  # A thread of tensorboardX ends by the error.
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_metrics_on_a_full_disk_do_not_hang(tmp_path, caplog):
  """TensorBoard's thread ends at its first error: nothing may wait for it."""
  writer = metrics.MetricsWriter(tmp_path, 0)
  with files_of_at_most(1):
    for step in range(1, 200):
      writer.write(step, {"loss": 1.0, "rate": 2.0})
  writer.close()
  assert "TensorBoard's files end here" in caplog.text
  rows = metrics.read(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, 200))


def test_a_run_resumes_with_other_data_only_if_allowed(run_copy):
  folder = epath.Path(run_copy)
  longer = small_config(training__steps=8, data__records_per_canvas=20)
  with pytest.raises(ValueError, match=r"not those that the run .* started"):
    train(longer, folder)
  assert saved_steps(folder) == [2, 4, 6]
  state = train(longer, folder, allow_change=True)
  assert int(state.step) == 8
