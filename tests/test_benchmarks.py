"""Benchmarks of attention and of the training step run, at their smallest.

What PyTorch is compared with is in tests/parity/test_benchmarks_torch.py.
"""

import subprocess
import sys

import pytest
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


def table(module, *arguments):
  """Lines of the table that a benchmark prints, and all that it prints."""
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


def test_attention_prints_a_ratio_for_every_size():
  rows, _ = table(*ATTENTION, "--notorch")
  assert [row["rows x tokens"] for row in rows] == ["1 x 64"] * 2 + [
    "1 x 128"
  ] * 2
  assert [row["pass"] for row in rows] == ["forward", "and backward"] * 2
  assert all(float(row["dense / chunked"]) > 0 for row in rows)
  assert all(float(row["dense, temporary MB"]) > 0 for row in rows)


@pytest.mark.slow
def test_attention_as_on_an_accelerator():
  arguments = [
    "--kernels=auto,chunked",
    "--head_dims=8,16",
    "--dtype=bfloat16",
    "--row_tokens=128",
    "--calls=2",
  ]
  rows, _ = table(*ATTENTION, "--notorch", *arguments)
  assert [row["head_dim"] for row in rows] == ["8"] * 4 + ["16"] * 4
  assert {row["rows x tokens"] for row in rows} == {"2 x 64", "1 x 128"}
  assert all(float(row["chunked / auto"]) > 0 for row in rows)


@pytest.mark.slow
def test_train_step_alone_has_times_and_no_ratio():
  rows, text = table(*TRAIN_STEP, "--notorch", "--remat=full", "--tokens=16")
  assert "ours alone" in text
  assert [row["rows x tokens"] for row in rows] == ["1 x 16"]
  assert all(float(row["ours, s/step"]) > 0 for row in rows)
  assert {row["remat"] for row in rows} == {"full"}
  assert {row["torch / ours"] for row in rows} == {"-"}
