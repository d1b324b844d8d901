"""Runs benchmarks in processes, at their smallest sizes."""

import subprocess
import sys

from support.configs import ROOT

ATTENTION = ["attention", "--tokens=64,128", "--heads=2", "--rounds=1"]
TRAIN_STEP = [
  "train_step",
  "--networks=tiny",
  "--tokens=4,16",
  "--row_tokens=16",
  "--words=4",
  "--rounds=1",
]
IMAGES = ["--images=6", "--longer=150", "--rounds=1"]
DATA = ["data", *IMAGES, "--sides=64", "--batches=1", "--max_workers=1"]


def table(module, *arguments):
  """Rows of the table that a benchmark prints, and its whole output."""
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{module}", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  lines = [x.strip("| ") for x in done.stdout.splitlines() if x[:1] == "|"]
  head, _, *rows = [line.split(" | ") for line in lines]
  assert all(len(row) == len(head) for row in rows)
  return [dict(zip(head, row, strict=True)) for row in rows], done.stdout
