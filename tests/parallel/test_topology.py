"""Machines by name: known, similar and missing ones."""

import importlib.util
import subprocess
import sys

import pytest
from support.configs import ROOT

from lumina_jax.parallel import chips, topology
from lumina_jax.parallel.chips import CHIPS

# One device of each TPU, and a shape that libtpu refuses.
CODE = """
from lumina_jax.parallel import topology
from lumina_jax.parallel.chips import CHIPS
for chip in CHIPS.values():
  if chip.libtpu:
    found = topology.find(f"{chip.name}:{chip.slices[0]}")
    print(chip.name, found.chips, len(found.devices))
print(len(topology.find("tpu7x:2x2x1").devices))
try:
  topology.find("v5e:3x5")
except ValueError as error:
  print(error)
"""


def test_slices_are_sorted_by_size():
  assert CHIPS["v7x"].flops * CHIPS["v7x"].devices == 2307e12
  for chip in CHIPS.values():
    sizes = [chips.chip_count(shape) for shape in chip.slices]
    assert sizes == sorted(sizes)
  assert chips.larger_slices(CHIPS["v5e"], 128) == ["16x16"]
  assert chips.larger_slices(CHIPS["v5e"], 256) == []


@pytest.mark.parametrize(
  ("name", "near"),
  [
    ("v5x:4x4", "v5e:4x4"),
    ("v5e", "v5e:"),
    ("v5e:", "v5e:"),
    ("v5e:4x", "v5e:4x4"),
    ("v5e:0x4", "v5e:"),
    ("v5litepod-16", "v5e"),
    ("h100:2x2", "or gpu"),
  ],
)
def test_unknown_names_suggest_similar_ones(name, near):
  with pytest.raises(ValueError, match="unknown topology") as caught:
    topology.find(name)
  assert near in str(caught.value)
  assert "cpu:8" in str(caught.value)


def test_a_missing_libtpu_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(topology, "setup_libtpu", lambda: None)
  with pytest.raises(ValueError, match="pip install -r requirements-tpu"):
    topology.find("v5e:4x4")


def test_cpu_devices():
  found = topology.find("cpu:1")
  assert (found.chips, found.chip.usable) == (1, 0)
  with pytest.raises(ValueError, match="started with 1 CPU device"):
    topology.find("cpu:64")
  with pytest.raises(ValueError, match=r"number of devices, e.g. cpu:8"):
    topology.find("cpu:2x2")


def test_a_machine_without_gpu_has_none():
  with pytest.raises(ValueError, match="finds no GPU"):
    topology.find("gpu")


@pytest.mark.e2e
def test_libtpu_knows_every_tpu():
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[:6] == [
    "v4 4 4",
    "v5e 1 1",
    "v5p 4 4",
    "v6e 1 1",
    "v7x 4 8",
    "8",
  ]
  assert "did you mean v5e:" in lines[6]
