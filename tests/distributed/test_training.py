"""Real training in several processes, resumed on other devices."""

import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from support.fake_devices import lines
from support.training_processes import Run

from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import metrics

pytestmark = pytest.mark.e2e


def losses(workdir):
  return {row["step"]: row["loss"] for row in metrics.read(workdir)}


def train(processes, devices, workdir, **changes):
  """Trains to the end; returns what each process printed."""
  with Run(processes, devices, workdir, **changes) as run:
    assert run.codes() == [0] * processes, run.printed()
    return run.printed()


def truncated(step, workdir, copy):
  """A copy of a run without checkpoints after `step`."""
  shutil.copytree(workdir, copy)
  for checkpoint in (copy / "checkpoints").iterdir():
    if int(checkpoint.name) > step:
      shutil.rmtree(checkpoint)
  return copy


def assert_same_losses(workdir, other):
  found, expected = losses(workdir), losses(other)
  assert found.keys() == expected.keys()
  for step, loss in expected.items():
    assert found[step] == pytest.approx(loss, rel=1e-4), step


def assert_same_weights(workdir, other):
  pairs = [LuminaPipeline.from_workdir(w).params for w in (workdir, other)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *pairs)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """A run of six steps on one device, with checkpoints at 2, 4 and 6."""
  workdir = tmp_path_factory.mktemp("runs") / "one"
  train(1, 1, workdir)
  return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """The same run in two processes of two devices each."""
  workdir = tmp_path_factory.mktemp("runs") / "two"
  return workdir, train(2, 2, workdir)


def test_two_processes_train_like_one_and_the_first_prints(one, two):
  workdir, printed = two
  assert_same_losses(workdir, one)
  assert_same_weights(workdir, one)
  assert "in 2 processes (data 4)" in printed[0] and "Done. In" in printed[0]
  assert lines(printed[1]) == []
  names = {path.name for path in (workdir / "samples").iterdir()}
  assert names == {"data.png", "step_000006.png"}
  images = [
    np.asarray(Image.open(w / "samples" / "step_000006.png"), np.float32)
    for w in (workdir, one)
  ]
  assert np.abs(images[0] - images[1]).mean() < 1


@pytest.mark.long
@pytest.mark.parametrize(
  ("start", "step", "processes", "devices"),
  [("one", 2, 1, 8), ("two", 4, 1, 1), ("one", 2, 4, 1)],
)
def test_a_run_resumes_on_other_devices(
  start, step, processes, devices, one, two, tmp_path
):
  whole = {"one": one, "two": two[0]}[start]
  workdir = truncated(step, whole, tmp_path / "copy")
  printed = train(processes, devices, workdir)
  assert f"resumed at step {step}" in printed[0]
  assert_same_losses(workdir, one)
  assert_same_weights(workdir, one)


@pytest.mark.long
def test_eight_devices_then_four(one, tmp_path):
  eight = truncated(2, one, tmp_path / "eight")
  train(1, 8, eight)
  four = truncated(4, eight, tmp_path / "four")
  assert "resumed at step 4" in train(1, 4, four)[0]
  assert_same_losses(four, one)


ENDLESS = dict(
  training__steps=100_000,
  training__log_every=1,
  training__checkpoint_every=5,
  training__keep_checkpoints=10,
  training__sample_every=100_000,
)


def test_sigterm_stops_all_a_crash_ends_all_and_other_devices_resume(tmp_path):
  """SIGTERM to one of two, a crash of one of two, then one with 8 devices."""
  workdir = tmp_path / "run"
  with Run(2, 1, workdir, **ENDLESS) as run:
    run.wait_for(5)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes(120) == [0, 0], run.printed()
    stopped = run.checkpoints()[-1]
    assert "stopped and saved" in run.printed()[0]
  with Run(2, 1, workdir, **ENDLESS) as run:
    run.wait_for(stopped + 10)
    assert f"resumed at step {stopped}" in run.printed()[0]
    run.processes[1].kill()
    codes = run.codes(120)
    assert codes[0] > 0 or codes[0] == -signal.SIGABRT, codes
    text = run.printed()[0]
    assert "tasks have crashed" in text or "cannot continue" in text
    *_, previous, crashed = run.checkpoints()
  rows = losses(workdir)
  # From one checkpoint earlier, so that some losses are computed twice.
  shutil.rmtree(workdir / "checkpoints" / str(crashed))
  with Run(1, 8, workdir, **ENDLESS) as run:
    run.wait_for(crashed)
    assert f"resumed at step {previous}" in run.printed()[0]
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.codes(120) == [0], run.printed()
  after = losses(workdir)
  for step in range(1, crashed + 1):
    exact = step <= previous
    expected = rows[step] if exact else pytest.approx(rows[step], rel=1e-4)
    assert after[step] == expected, step
