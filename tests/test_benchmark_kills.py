"""The benchmark that kills a run at random moments, a few times."""

import subprocess
import sys

import pytest
from support.configs import ROOT


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_is_killed_comes_back_the_same():
  words = ["benchmarks.kills", "--kills=4", "--steps=400", "--seed=1"]
  done = subprocess.run(
    [sys.executable, "-m", *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "4 kills" in done.stdout and "equal bit for bit" in done.stdout
