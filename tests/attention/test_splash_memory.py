"""The splash kernel's memory is linear in the length of a row."""

import itertools
import os
import pathlib
import subprocess
import sys

import pytest
from support.configs import ROOT

SCRIPT = pathlib.Path(__file__).parent / "splash_memory.py"


@pytest.mark.compiler
@pytest.mark.parametrize("split", ["ulysses", "ring"])
def test_temporaries_of_a_device_are_linear_in_the_length(split):
  """Both passes over four chips, at 32, 64 and 128 thousand tokens."""
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  path = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
  done = subprocess.run(
    [sys.executable, SCRIPT, split, "32768", "65536", "131072"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  sizes = [int(line) for line in done.stdout.split()]
  for shorter, longer in itertools.pairwise(sizes):
    assert 1.5 < longer / shorter < 2.6, sizes
