"""The benchmark that kills a run at random moments, with a few kills."""

import subprocess
import sys

import pytest
from support.configs import ROOT


@pytest.mark.long
def test_a_killed_run_resumes_exactly():
  arguments = ["benchmarks.kills", "--kills=4", "--steps=400", "--seed=1"]
  done = subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "4 kills" in done.stdout and "equal bit for bit" in done.stdout
