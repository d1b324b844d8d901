"""The same training on one device and on eight."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent


def run(devices: int, *mesh: str) -> dict:
  flags = f"--xla_force_host_platform_device_count={devices}"
  path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
  done = subprocess.run(
    [sys.executable, HERE / "loss_curve.py", *mesh],
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device():
  return run(1)


@pytest.mark.parametrize(
  ("mesh", "shards"),
  [
    (("data=4", "fsdp=2"), 2),
    (("data=2", "fsdp=1", "context=4"), 4),
    (("data=2", "fsdp=2", "tensor=2"), 4),
  ],
  ids=" ".join,
)
def test_eight_devices_give_the_same_loss_curve(one_device, mesh, shards):
  sharded = run(8, *mesh)
  assert one_device["losses"][-1] < one_device["losses"][0]
  np.testing.assert_allclose(sharded["losses"], one_device["losses"], rtol=1e-4)
  assert sharded["shards"] == shards and sharded["alike"]
  assert sharded["programs"] == 1
