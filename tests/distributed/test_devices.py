"""The same training on one device and on eight."""

import json
import shutil

import numpy as np
import pytest
from support.configs import small_flags
from support.fake_devices import HERE, start

from lumina_jax.training import metrics


def run(devices: int, *mesh: str) -> dict:
  printed = start(devices, HERE / "loss_curve.py", *mesh)
  return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device():
  return run(1)


@pytest.mark.parametrize(
  ("mesh", "shards"),
  [
    pytest.param(
      ("data=4", "fsdp=2"), 2, id="data fsdp", marks=pytest.mark.slow
    ),
    pytest.param(
      ("data=2", "context=4"),
      4,
      id="data context",
      marks=[pytest.mark.slow, pytest.mark.long],
    ),
    pytest.param(
      ("data=2", "fsdp=2", "tensor=2"), 4, id="all", marks=pytest.mark.slow
    ),
  ],
)
def test_eight_devices_give_the_same_loss_curve(one_device, mesh, shards):
  sharded = run(8, *mesh)
  assert one_device["losses"][-1] < one_device["losses"][0]
  np.testing.assert_allclose(sharded["losses"], one_device["losses"], rtol=1e-4)
  assert sharded["shards"] == shards and sharded["alike"]
  assert sharded["programs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [
    pytest.param(
      ("data=2", "context=2", "tensor=2"),
      id="context tensor",
      marks=pytest.mark.long,
    ),
    pytest.param(("data=2", "fsdp=4"), id="fsdp", marks=pytest.mark.long),
  ],
)
def test_experts_on_eight_devices_give_the_same_loss_curve(mesh):
  one, eight = run(1, "experts=4"), run(8, "experts=4", *mesh)
  assert one["losses"][-1] < one["losses"][0]
  np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
  assert eight["programs"] == 1


@pytest.mark.slow
@pytest.mark.long
def test_a_run_of_eight_devices_goes_on_with_one(tmp_path):
  """Trained and sampled on eight; resumed two steps earlier on one."""
  flags = small_flags(mesh__fsdp=2, mesh__context=2)
  words = ["-m", "lumina_jax.train", "--config=configs/digits.py", *flags]
  eight, one = tmp_path / "eight", tmp_path / "one"
  printed = start(8, *words, f"--workdir={eight}")
  assert "on 8 x cpu (data 2, fsdp 2, context 2)" in printed
  assert (eight / "samples" / "step_000006.png").exists()
  shutil.copytree(eight, one)
  shutil.rmtree(one / "checkpoints" / "6")
  shutil.rmtree(one / "samples")
  words += ["--config.mesh.fsdp=1", "--config.mesh.context=1"]
  printed = start(1, *words, "--allow_config_change", f"--workdir={one}")
  assert "resumed at step 4" in printed
  losses = [[row["loss"] for row in metrics.read(w)] for w in (eight, one)]
  assert len(losses[1]) == 6
  np.testing.assert_allclose(*losses, rtol=1e-4)
  start(1, "-m", "lumina_jax.sample", f"--workdir={one}", "--prompt=7",
        f"--output={tmp_path / 'pictures'}")  # fmt: skip
