"""Real training in several processes, and resumed on other devices."""

import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from support.training_processes import Run

from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import metrics

pytestmark = pytest.mark.slow


def losses(workdir):
  return {row["step"]: row["loss"] for row in metrics.read(workdir)}


def trained(processes, devices, workdir, **changes):
  """Trains to the end; returns what each process printed."""
  with Run(processes, devices, workdir, **changes) as run:
    assert run.codes() == [0] * processes, run.printed()
    return run.printed()


def resumed_at(step, workdir, copy):
  """A copy of a run that has got no further than `step`."""
  shutil.copytree(workdir, copy)
  for saved in (copy / "checkpoints").iterdir():
    if int(saved.name) > step:
      shutil.rmtree(saved)
  return copy


def assert_same_losses(workdir, other):
  mine, theirs = losses(workdir), losses(other)
  assert mine.keys() == theirs.keys()
  for step, loss in theirs.items():
    assert mine[step] == pytest.approx(loss, rel=1e-4), step


def assert_same_weights(workdir, other):
  pairs = [LuminaPipeline.from_workdir(w).params for w in (workdir, other)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """A run of six steps on one device, with checkpoints at 2, 4 and 6."""
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  trained(1, 1, workdir)
  return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """The same in two processes of two devices each."""
  workdir = tmp_path_factory.mktemp("runs") / "together"
  return workdir, trained(2, 2, workdir)


def test_two_processes_train_as_one_and_the_first_speaks(alone, together):
  workdir, printed = together
  assert_same_losses(workdir, alone)
  assert_same_weights(workdir, alone)
  assert "in 2 processes (data 4)" in printed[0] and "Done. In" in printed[0]
  spoken = [line for line in printed[1].splitlines() if "Gloo" not in line]
  assert spoken == []
  names = {path.name for path in (workdir / "samples").iterdir()}
  assert names == {"data.png", "step_000006.png"}
  drawn = [
    np.asarray(Image.open(w / "samples" / "step_000006.png"), np.float32)
    for w in (workdir, alone)
  ]
  assert np.abs(drawn[0] - drawn[1]).mean() < 1


@pytest.mark.parametrize(
  ("begun", "step", "processes", "devices"),
  [
    ("alone", 2, 1, 8),
    pytest.param("together", 4, 1, 1, marks=pytest.mark.long),
    pytest.param("alone", 2, 4, 1, marks=pytest.mark.long),
  ],
)
def test_a_run_goes_on_on_other_devices(
  begun, step, processes, devices, alone, together, tmp_path
):
  whole = {"alone": alone, "together": together[0]}[begun]
  workdir = resumed_at(step, whole, tmp_path / "copy")
  printed = trained(processes, devices, workdir)
  assert f"resumed at step {step}" in printed[0]
  assert_same_losses(workdir, alone)
  assert_same_weights(workdir, alone)


@pytest.mark.long
def test_eight_devices_then_four(alone, tmp_path):
  eight = resumed_at(2, alone, tmp_path / "eight")
  trained(1, 8, eight)
  four = resumed_at(4, eight, tmp_path / "four")
  assert "resumed at step 4" in trained(1, 4, four)[0]
  assert_same_losses(four, alone)


ENDLESS = dict(
  training__steps=100_000,
  training__log_every=5,
  training__checkpoint_every=5,
  training__sample_every=100_000,
)


def test_sigterm_to_one_stops_all_and_a_crash_of_one_ends_all(tmp_path):
  workdir = tmp_path / "run"
  with Run(2, 1, workdir, **ENDLESS) as run:
    run.wait_for(5)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes(120) == [0, 0], run.printed()
    stopped = run.saved()[-1]
    assert "stopped and saved" in run.printed()[0]
  with Run(2, 1, workdir, **ENDLESS) as run:
    run.wait_for(stopped + 5)
    assert f"resumed at step {stopped}" in run.printed()[0]
    run.processes[1].kill()
    codes = run.codes(120)
    assert codes[0] > 0 or codes[0] == -signal.SIGABRT, codes
    text = run.printed()[0]
    assert "tasks have crashed" in text or "cannot go on" in text
    crashed = run.saved()[-1]
  rows = losses(workdir)
  with Run(2, 1, workdir, **ENDLESS) as run:
    run.wait_for(crashed + 5)
    assert f"resumed at step {crashed}" in run.printed()[0]
    for process in run.processes:
      process.send_signal(signal.SIGTERM)
    assert run.codes(120) == [0, 0], run.printed()
  after = losses(workdir)
  assert {s: after[s] for s in rows if s <= crashed} == {
    s: loss for s, loss in rows.items() if s <= crashed
  }
