"""The main job: train, kill -9, resume, sample, evaluate."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from PIL import Image
from support.configs import ROOT, small_config
from support.runs import run, train_words
from support.zygote import fork, start

from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.train import train
from lumina_jax.training import metrics

LONG = dict(training__steps=60, training__checkpoint_every=20)


def weights(workdir) -> dict[str, np.ndarray]:
  params = LuminaPipeline.from_workdir(workdir).params
  flat = traverse_util.flatten_dict(params, sep="/")
  return {name: np.asarray(value) for name, value in flat.items()}


def test_a_run_writes_what_its_last_lines_name(trained_run):
  workdir, printed = trained_run
  sheet = Image.open(workdir / "samples" / "step_000006.png")
  assert min(sheet.size) > 100
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


def test_evaluate_writes_figures_and_completes_the_report(run_copy):
  done = fork("evaluate", f"--workdir={run_copy}", "--cells=1")
  assert done.returncode == 0, done.stderr
  result = json.loads((run_copy / "evaluation.json").read_text())
  canvases = {row["canvas"] for row in result["accuracy"]}
  assert {"1x1", "2x2", "1x4", "3x3"} <= canvases
  assert {row["guidance"] for row in result["accuracy"]} == {1.0, 1.5, 2.0}
  assert all(0 <= row["accuracy"] <= 1 for row in result["accuracy"])
  assert result["step"] == 6
  assert result["classifier_accuracy_held_out"] > 0.97
  assert set(result["memorisation"]) == {"1.0", "1.5", "2.0"}
  assert all(x["distance"] > 0 for x in result["memorisation"].values())
  losses = result["held_out_loss_by_time"]
  assert len(losses) == 10 and all(loss > 0 for loss in losses)
  page = (run_copy / "report.html").read_text()
  for table in result["tables"]:
    assert table["title"] in page
    assert all(cell in page for row in table["rows"] for cell in row)
  assert "3x3 unseen" in page and "3x3 unseen" in done.stdout


@pytest.mark.e2e
def test_sample_writes_samples_and_enlargements(trained_run, tmp_path):
  prompts = ["--prompt=3 1 4", "--prompt=3-1", "--prompt=3 1"]
  words = [f"--workdir={trained_run.workdir}", "--num_samples=2"]
  run("sample", *prompts, *words, f"--output={tmp_path}")
  names = sorted(path.name for path in tmp_path.iterdir())
  assert len(names) == 2 * 2 * 3 + 1 and "overview.png" in names
  assert "3_1_seed0_0.png" in names and "3_1_seed0_2_0.png" in names
  assert Image.open(tmp_path / "3_1_4_seed0_1.png").size == (24, 8)
  large = Image.open(tmp_path / "3_1_4_seed0_1_x16.png")
  assert large.size == (24 * 16, 8 * 16)


@pytest.mark.usefixtures("shared_programs")
def test_a_finished_run_has_nothing_left_to_do(run_copy, capsys):
  before = weights(run_copy)
  train(small_config(), epath.Path(run_copy))
  assert "resumed at step 6" in capsys.readouterr().out
  np.testing.assert_equal(weights(run_copy), before)
  assert len(metrics.read(run_copy)) == 6


def interrupted_run(workdir, step, number):
  """Sends a signal at a checkpoint; returns the exit code and the output."""
  process = start("lumina_jax.train", *train_words(workdir, **LONG))
  checkpoint = workdir / "checkpoints" / str(step)
  deadline = time.monotonic() + 120
  while not checkpoint.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(number)
  code = process.wait()
  assert not (workdir / "checkpoints" / "60").exists()
  return code, process.stdout


@pytest.mark.e2e
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
  """SIGTERM in between loses no step."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run("train", *train_words(whole, **LONG))
  assert interrupted_run(broken, 20, signal.SIGKILL)[0] == -signal.SIGKILL
  code, printed = interrupted_run(broken, 40, signal.SIGTERM)
  assert code == 0 and "stopped and saved" in printed
  last = metrics.read(broken)[-1]["step"]
  assert (broken / "checkpoints" / str(last)).exists()
  printed = run("train", *train_words(broken, **LONG))
  assert f"resumed at step {last}" in printed
  np.testing.assert_equal(weights(broken), weights(whole))
  theirs, ours = metrics.read(whole), metrics.read(broken)
  assert [row["step"] for row in ours] == list(range(1, 61))
  assert [r["loss"] for r in ours] == [r["loss"] for r in theirs]


@pytest.mark.e2e
def test_an_interrupt_while_compiling_ends_cleanly(tmp_path):
  words = train_words(tmp_path, **LONG)
  process = subprocess.Popen(
    [sys.executable, "-m", "lumina_jax.train", *words],
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


@pytest.mark.e2e
def test_an_interrupt_that_python_drops_is_repeated():
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
