"""Kills a training run at random moments and checks that it resumes exactly.

  python -m benchmarks.kills --kills=50

Trains digits with a checkpoint every few steps, sends SIGKILL after a random
time, starts the same command again, and so on; then lets it finish. Every start
must resume from the newest checkpoint, and the final parameters, EMA and
metrics must equal those of an uninterrupted run bit for bit.
"""

import json
import logging
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from orbax import checkpoint as ocp

from lumina_jax.training.metrics import read
from lumina_jax.training.restore import FOLDER

EVERY = 5
SMALL = {
  "model.width": 32,
  "model.depth": 2,
  "model.heads": 2,
  "model.kv_heads": 2,
  "model.cond_width": 32,
  "model.text_width": 32,
  "text_encoder.width": 32,
  "data.records_per_canvas": 32,
  "training.batch_rows": 4,
  "training.log_every": EVERY,
  "training.checkpoint_every": EVERY,
  "training.samples_per_prompt": 1,
}


def command(workdir: pathlib.Path, steps: int) -> list[str]:
  """A command that trains a small network."""
  values = SMALL | {"training.steps": steps, "training.sample_every": steps}
  return [
    sys.executable,
    "-m",
    "lumina_jax.train",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def newest_step(workdir: pathlib.Path) -> int:
  """Step of the newest complete checkpoint; -1 = none."""
  folder = workdir / FOLDER
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=-1)


def kill_once(
  arguments: list[str], workdir: pathlib.Path, wait: float, early: bool
) -> dict[str, Any]:
  """Starts a run and kills it.

  Args:
    arguments: command of the run.
    workdir: its workdir.
    wait: seconds before it is killed.
    early: whether these count from its start, so that it may be killed before
      or while it restores a checkpoint, or from its first step.

  Returns:
    Newest checkpoint at the start and at the kill, whether a save was under
    way, and the exit code.

  Raises:
    RuntimeError: if the run does not resume from the newest checkpoint.
  """
  before, log = newest_step(workdir), workdir.with_suffix(".log")
  with log.open("w") as out:
    process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT)
  deadline = time.monotonic() + 300
  while not early and "training:" not in log.read_text():
    if process.poll() is not None or time.monotonic() > deadline:
      raise RuntimeError(f"the run did not start:\n{log.read_text()}")
    time.sleep(0.02)
  time.sleep(wait)
  process.kill()
  code, text = process.wait(), log.read_text()
  start = f"resumed at step {before}" if before >= 0 else "from scratch"
  if start not in text and ("training:" in text or "steps, " in text):
    raise RuntimeError(f"expected {start!r}:\n{text}")
  folder = workdir / FOLDER
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  after = newest_step(workdir)
  if after < before:
    raise RuntimeError(f"checkpoint {before} is gone, the newest is {after}")
  saving = any("tmp" in name for name in names)
  return {"before": before, "after": after, "saving": saving, "rc": code}


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of the newest checkpoint, by item and path."""
  folder = workdir / FOLDER / str(newest_step(workdir))
  found = {}
  for item in ("ema", "train"):
    tree = ocp.PyTreeCheckpointer().restore((folder / item).absolute())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def compare(workdir: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Names of the arrays and metrics that differ between two finished runs."""
  ours, others = arrays(workdir), arrays(other)
  different = [
    name
    for name in sorted(ours.keys() | others.keys())
    if name not in ours
    or name not in others
    or not np.array_equal(ours[name], others[name])
  ]
  losses = [
    [(row["step"], row["loss"]) for row in read(folder)]
    for folder in (workdir, other)
  ]
  return different + ([] if losses[0] == losses[1] else ["metrics: losses"])


def measure(kills: int, steps: int, seed: int, folder: pathlib.Path) -> bool:
  """Prints a line for each kill and the result; returns whether all is equal.

  Args:
    kills: number of kills.
    steps: steps of the run.
    seed: seed of the moments.
    folder: folder for two workdirs.
  """
  rng = random.Random(seed)
  uninterrupted, killed = folder / "uninterrupted", folder / "killed"
  start = time.monotonic()
  subprocess.run(
    command(uninterrupted, steps), check=True, stdout=subprocess.DEVNULL
  )
  arguments = command(killed, steps)
  results = []
  for number in range(kills):
    early = rng.random() < 0.25
    wait = rng.uniform(0, 12 if early else 2)
    results.append(kill_once(arguments, killed, wait, early))
    print(f"kill {number + 1:2d}: {json.dumps(results[-1])}", flush=True)
    if results[-1]["rc"] == 0:
      break  # The run finished before the kill.
  subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
  different = compare(killed, uninterrupted)
  count = sum(result["rc"] != 0 for result in results)
  saving = sum(result["saving"] for result in results)
  print(
    f"{count} kills, {saving} of them while a checkpoint was being written, "
    f"{time.monotonic() - start:.0f} s; {len(arrays(uninterrupted))} arrays "
    f"and {steps // EVERY} losses: "
    + (
      f"DIFFERENT: {', '.join(different[:8])}"
      if different
      else "equal bit for bit"
    )
  )
  return not different and count == kills


def main(_) -> None:
  args = flags.FLAGS
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each step.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with tempfile.TemporaryDirectory() as folder:
    # Otherwise each start would compile for longer than it trains.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    equal = measure(args.kills, args.steps, args.seed, pathlib.Path(folder))
  sys.exit(0 if equal else 1)


if __name__ == "__main__":
  flags.DEFINE_integer("kills", 50, "Number of kills.", lower_bound=1)
  flags.DEFINE_integer("steps", 3000, "Steps of the run.", lower_bound=EVERY)
  flags.DEFINE_integer("seed", 0, "Seed of the moments.")
  app.run(main)
