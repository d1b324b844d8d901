"""Programs that must fit, compiled by the real TPU compiler.

Each runs in its own process, since libtpu keeps compiled programs in memory.
"""

import json
import subprocess
import sys

import pytest
from support.configs import ROOT

FLAG_7B = "--config=configs/text_to_image.py:flag_7b"
NEXT_2B = "--config=configs/text_to_image.py:next_2b_gqa"
GIB = 2**30

# Flags, kernels in the program, and the limit of GiB per device.
TARGETS = {
  # Two kernels forward, four backward; attention to text is recomputed.
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
    4,  # Two evaluations per step, of self-attention and of cross-attention.
    16,
  ),
  "2b v5e sampler": (
    [NEXT_2B, "--topology=v5e:1x1", "--tokens=4096", "--sample"],
    4,
    5,
  ),
}


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
