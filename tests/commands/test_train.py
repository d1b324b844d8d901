"""The main job through real processes: train, kill -9, resume, sample."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from support.configs import ROOT, small_config, small_flags

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import metrics
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state

LONG = dict(training__steps=60, training__checkpoint_every=20)


def command(module: str, *words) -> list[str]:
  return [sys.executable, "-m", f"lumina_jax.{module}", *map(str, words)]


def train_command(workdir, **changes) -> list[str]:
  flags = small_flags(**changes)
  return command(
    "train", "--config=configs/digits.py", f"--workdir={workdir}", *flags
  )


def run(words: list[str]) -> subprocess.CompletedProcess:
  return subprocess.run(
    words, cwd=ROOT, capture_output=True, text=True, check=False
  )


def weights(workdir) -> dict[str, np.ndarray]:
  params = LuminaPipeline.from_workdir(workdir).params
  flat = traverse_util.flatten_dict(params, sep="/")
  return {name: np.asarray(value) for name, value in flat.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A short run through the command line, and what it printed."""
  workdir = tmp_path_factory.mktemp("runs") / "digits"
  done = run(train_command(workdir))
  assert done.returncode == 0, done.stderr
  return workdir, done.stdout


def test_run_writes_what_its_last_lines_name(finished):
  workdir, printed = finished
  picture = Image.open(workdir / "samples" / "step_000006.png")
  assert min(picture.size) > 100
  rows = metrics.read(workdir)
  assert [row["step"] for row in rows] == list(range(1, 7))
  assert rows[-1]["loss"] < rows[0]["loss"]
  assert list((workdir / "tensorboard").iterdir())
  record = json.loads((workdir / "record.json").read_text())
  assert record[0]["packages"]["jax"] and record[0]["seed"] == 0
  page = (workdir / "report.html").read_text()
  assert "<polyline" in page and "data:image/png;base64" in page
  assert "http://" not in page and "https://" not in page
  assert f"--workdir={workdir}" in printed and "6/6 steps" in printed


def test_sample_writes_pictures_as_they_are_and_enlarged(finished, tmp_path):
  workdir, _ = finished
  prompts = ["--prompt=3 1 4", "--prompt=3-1", "--prompt=3 1"]
  words = [f"--workdir={workdir}", "--num_samples=2", f"--output={tmp_path}"]
  done = run(command("sample", *prompts, *words))
  assert done.returncode == 0, done.stderr
  names = sorted(path.name for path in tmp_path.iterdir())
  assert len(names) == 2 * 2 * 3 + 1 and "overview.png" in names
  assert "3_1_seed0_0.png" in names and "3_1_seed0_2_0.png" in names
  assert Image.open(tmp_path / "3_1_4_seed0_1.png").size == (24, 8)
  large = Image.open(tmp_path / "3_1_4_seed0_1_x16.png")
  assert large.size == (24 * 16, 8 * 16)


def test_evaluate_judges_and_completes_the_report(finished):
  workdir, _ = finished
  done = run(command("evaluate", f"--workdir={workdir}", "--cells=4"))
  assert done.returncode == 0, done.stderr
  result = json.loads((workdir / "evaluation.json").read_text())
  canvases = {row["canvas"] for row in result["accuracy"]}
  assert {"1x1", "2x2", "1x4", "3x3"} <= canvases
  assert {row["guidance"] for row in result["accuracy"]} == {1.0, 1.5, 2.0}
  assert all(0 <= row["accuracy"] <= 1 for row in result["accuracy"])
  assert result["step"] == 6 and result["reader_accuracy_held_out"] > 0.97
  assert set(result["memorisation"]) == {"1.0", "1.5", "2.0"}
  assert all(v["distance"] > 0 for v in result["memorisation"].values())
  losses = result["held_out_loss_by_time"]
  assert len(losses) == 10 and all(loss > 0 for loss in losses)
  page = (workdir / "report.html").read_text()
  assert "Prompt accuracy" in page and "3x3 unseen" in page


def test_same_command_again_finds_nothing_to_do(finished):
  workdir, _ = finished
  before = weights(workdir)
  done = run(train_command(workdir))
  assert done.returncode == 0, done.stderr
  assert "resumed at step 6" in done.stdout
  np.testing.assert_equal(weights(workdir), before)
  assert len(metrics.read(workdir)) == 6


def signalled(workdir, step, number):
  """Exit code of a run that is sent a signal at a checkpoint, and its words."""
  process = subprocess.Popen(
    train_command(workdir, **LONG),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  there = workdir / "checkpoints" / str(step)
  deadline = time.monotonic() + 120
  while not there.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(number)
  printed, _ = process.communicate()
  assert not (workdir / "checkpoints" / "60").exists()
  return process.returncode, printed


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
  """And told to stop in between, which loses no step."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  assert run(train_command(whole, **LONG)).returncode == 0
  assert signalled(broken, 20, signal.SIGKILL)[0] == -signal.SIGKILL
  code, printed = signalled(broken, 40, signal.SIGTERM)
  assert code == 0 and "stopped and saved" in printed
  stood = metrics.read(broken)[-1]["step"]
  assert (broken / "checkpoints" / str(stood)).exists()
  done = run(train_command(broken, **LONG))
  assert done.returncode == 0, done.stderr
  assert f"resumed at step {stood}" in done.stdout
  np.testing.assert_equal(weights(broken), weights(whole))
  theirs, ours = metrics.read(whole), metrics.read(broken)
  assert [row["step"] for row in ours] == list(range(1, 61))
  assert [r["loss"] for r in ours] == [r["loss"] for r in theirs]
  done = run(
    command(
      "sample",
      f"--workdir={broken}",
      "--prompt=7",
      f"--output={tmp_path / 'pictures'}",
    )
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_interrupt_while_compiling_ends_cleanly(tmp_path):
  process = subprocess.Popen(
    train_command(tmp_path, **LONG),
    cwd=ROOT,
    env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  for line in process.stdout:
    if "from scratch" in line:
      break
  time.sleep(1)
  process.send_signal(signal.SIGINT)
  rest = process.stdout.read()
  assert process.wait() == 130, rest
  assert "the same command starts anew" in rest and "Fatal" not in rest


DROPPED = """
import gc, time
from lumina_jax.commands import start as entry_point

def interrupt(*_):
  gc.callbacks.remove(interrupt)
  raise KeyboardInterrupt

def main(_):
  gc.callbacks.append(interrupt)
  gc.collect()
  print("collected", flush=True)
  time.sleep(20)
  print("slept")

entry_point.run(main)
"""


def test_an_interrupt_that_python_drops_comes_again():
  """JAX's callback of the garbage collector is where one may be dropped."""
  done = subprocess.run(
    [sys.executable, "-c", DROPPED],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 130, done.stderr
  assert done.stdout == "collected\n"
  assert "interrupted" in done.stderr and "ignored" not in done.stderr


@pytest.mark.parametrize(
  ("variant", "sizes"),
  [
    ("next", {4, 8, 12, 16}),
    pytest.param("flag", {6, 10, 12, 14, 18, 20}, marks=pytest.mark.slow),
  ],
)
def test_one_program_trains_all_canvas_sizes(variant, sizes):
  config = small_config(variant)
  mesh, batches = make_mesh(config.mesh), make_batches(config)
  tx = make_optimizer(config.optimizer, 10)
  pure = steps.make_train_step(config.network, tx, config.time, 0.9, 0)
  with jax.set_mesh(mesh):
    state = create_state(config.network, tx, mesh, 0)
    step = steps.jit_train_step(
      pure, config.network, tx, mesh, batches.batch(0)
    )
    packings = set()
    for i in range(4):
      batch = batches.batch(i)
      packings |= {tuple(np.bincount(r)[1:]) for r in batch[0].segments}
      state, _ = step(state, steps.place_batch(batch, mesh))
  assert len(packings) > 4 and set().union(*packings) == sizes
  assert step._cache_size() == 1


def test_shipped_weights_sample_without_a_workdir(tmp_path):
  words = ["lumina_jax.cli", "infer", "3 1 4", str(tmp_path / "out")]
  done = run([sys.executable, "-m", *words, "--seed=1"])
  assert done.returncode == 0, done.stderr
  assert Image.open(tmp_path / "out" / "3_1_4_seed1_0.png").size == (24, 8)
