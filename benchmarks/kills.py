"""Kills a run of the digits at random moments: does it come back the same?

  python -m benchmarks.kills --kills=50

Trains the digits with a checkpoint every few steps, sends SIGKILL after a
random time, starts the same command again, and so on; then lets it come to its
end. Every start has to go on where a checkpoint stands, nothing but steps after
the newest one may be lost, and the parameters, the average and the metrics at
the end have to be those of a run that was never interrupted, bit for bit.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

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
  """Trains a small network for so many steps."""
  values = SMALL | {"training.steps": steps, "training.sample_every": steps}
  return [
    sys.executable,
    "-m",
    "lumina_jax.train",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def saved(workdir: pathlib.Path) -> int:
  """Step of the newest complete checkpoint; -1 = none."""
  folder = workdir / FOLDER
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=-1)


def kill_once(
  words: list[str], workdir: pathlib.Path, wait: float, early: bool
) -> dict:
  """Starts a run and kills it.

  Args:
    words: its command.
    workdir: where it trains.
    wait: seconds before it is killed.
    early: from its start on, so perhaps before or while it restores a
      checkpoint; else from its first step on.

  Returns:
    Where it began, where it stood when it was killed, and whether a save was
    under way.

  Raises:
    RuntimeError: if it does not begin where the newest checkpoint is.
  """
  before, log = saved(workdir), workdir.with_suffix(".log")
  with log.open("w") as out:
    process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
  deadline = time.monotonic() + 300
  while not early and "training:" not in log.read_text():
    if process.poll() is not None or time.monotonic() > deadline:
      raise RuntimeError(f"it did not start:\n{log.read_text()}")
    time.sleep(0.02)
  time.sleep(wait)
  process.kill()
  code, text = process.wait(), log.read_text()
  start = f"resumed at step {before}" if before >= 0 else "from scratch"
  if start not in text and ("training:" in text or "steps, " in text):
    raise RuntimeError(f"expected {start!r}:\n{text}")
  folder = workdir / FOLDER
  left = list(folder.iterdir()) if folder.exists() else []
  saving = any("tmp" in path.name for path in left)
  stood = saved(workdir)
  if stood < before:
    raise RuntimeError(f"checkpoint {before} is gone, the newest is {stood}")
  return {"began": before, "stood": stood, "saving": saving, "rc": code}


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Everything in the newest checkpoint, by item and path."""
  folder = workdir / FOLDER / str(saved(workdir))
  found = {}
  for item in ("ema", "train"):
    tree = ocp.PyTreeCheckpointer().restore((folder / item).absolute())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def compare(workdir: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Names of what differs between the ends of two runs."""
  mine, theirs = arrays(workdir), arrays(other)
  wrong = [
    name
    for name in sorted(mine.keys() | theirs.keys())
    if name not in mine
    or name not in theirs
    or not np.array_equal(mine[name], theirs[name])
  ]
  losses = [
    [(row["step"], row["loss"]) for row in read(folder)]
    for folder in (workdir, other)
  ]
  return wrong + ([] if losses[0] == losses[1] else ["metrics: losses"])


def torture(kills: int, steps: int, seed: int, folder: pathlib.Path) -> None:
  """Prints a line for each kill; exits with 1 if the ends differ."""
  rng = random.Random(seed)
  whole, broken = folder / "whole", folder / "broken"
  began = time.monotonic()
  subprocess.run(command(whole, steps), check=True, stdout=subprocess.DEVNULL)
  words = command(broken, steps)
  done = []
  for number in range(kills):
    early = rng.random() < 0.25
    wait = rng.uniform(0, 12 if early else 2)
    done.append(kill_once(words, broken, wait, early))
    print(f"kill {number + 1:2d}: {json.dumps(done[-1])}", flush=True)
    if done[-1]["rc"] == 0:
      break  # It came to its end before the kill.
  subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
  wrong = compare(broken, whole)
  killed = sum(one["rc"] != 0 for one in done)
  saving = sum(one["saving"] for one in done)
  print(
    f"{killed} kills, {saving} of them while a checkpoint was being written, "
    f"{time.monotonic() - began:.0f} s; {len(arrays(whole))} arrays and "
    f"{steps // EVERY} losses: "
    + (f"DIFFERENT: {', '.join(wrong[:8])}" if wrong else "equal bit for bit")
  )
  sys.exit(1 if wrong or killed < kills else 0)


def main(_) -> None:
  args = flags.FLAGS
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with tempfile.TemporaryDirectory() as folder:
    # Or each start would compile anew, which takes longer than what it is for.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    torture(args.kills, args.steps, args.seed, pathlib.Path(folder))


if __name__ == "__main__":
  flags.DEFINE_integer("kills", 50, "How often to kill.", lower_bound=1)
  flags.DEFINE_integer("steps", 3000, "Of the run.", lower_bound=EVERY)
  flags.DEFINE_integer("seed", 0, "Of the moments.")
  app.run(main)
