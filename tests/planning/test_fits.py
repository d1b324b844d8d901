"""Programs that must fit, compiled whole by the TPU's own compiler.

One at a time, in a process of its own: libtpu keeps what it has compiled.
"""

import json
import subprocess
import sys

import pytest
from support.configs import ROOT

FLAG_7B = "--config=configs/text_to_image.py:flag_7b"
NEXT_2B = "--config=configs/text_to_image.py:next_2b_gqa"
GIB = 2**30

# What is compiled, kernels in it, and the most GiB that a device may need.
TARGETS = {
  # Two kernels forwards, four backwards; attention to text forwards again.
  "7b v5p attention": (
    [FLAG_7B, "--topology=v5p:2x2x1", "--tokens=131072", "--remat=attention"],
    7,
    70,
  ),
  "7b v6e full": (
    [FLAG_7B, "--topology=v6e:2x4", "--tokens=131072", "--remat=full"],
    8,
    31.25,
  ),
  "7b v5e full": (
    [FLAG_7B, "--topology=v5e:4x4", "--tokens=131072", "--remat=full"],
    8,
    15.75,
  ),
  "7b v5p 512k": (
    [FLAG_7B, "--topology=v5p:2x2x4", "--tokens=524288", "--remat=full"],
    8,
    40,
  ),
  "7b v5p 512k sampler": (
    [FLAG_7B, "--topology=v5p:2x2x2", "--tokens=524288", "--sample"],
    4,  # Two evaluations a step, of self-attention and of that to text.
    16,
  ),
  "2b v5e sampler": (
    [NEXT_2B, "--topology=v5e:1x1", "--tokens=4096", "--sample"],
    4,
    5,
  ),
}


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("target", TARGETS)
def test_it_fits(target):
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  words, kernels, most = TARGETS[target]
  done = subprocess.run(
    [sys.executable, "-m", "lumina_jax.plan", *words, "--json"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads(done.stdout)
  assert found["fits"]
  state = sum(found["memory"][n] for n in ("parameters", "optimizer"))
  assert state < found["memory"]["peak"] <= most * GIB
  assert found["kernels"] == kernels
