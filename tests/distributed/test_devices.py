"""The same training on one device and on eight."""

import shutil

import numpy as np
import pytest
from support.configs import small_flags
from support.fake_devices import SCRIPTS, result, run

from lumina_jax.training import metrics

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def runs():
  """One device, and all four kinds of parallelism but context."""
  meshes = "data=1", "data=2,fsdp=2,tensor=2"
  return result(run(8, SCRIPTS / "loss_curve.py", *meshes))


def compare(sharded, one):
  assert one["losses"][-1] < one["losses"][0]
  np.testing.assert_allclose(sharded["losses"], one["losses"], rtol=1e-4)
  assert sharded["alike"] and sharded["programs"] == 1


def test_eight_devices_give_the_same_loss_curve(runs):
  one, eight = runs
  compare(eight, one)
  assert (one["shards"], eight["shards"]) == (1, 4)


def test_the_table_of_shardings_counts_the_bytes_of_each_device(runs):
  _, eight = runs
  for held, (local, total) in zip(eight["held"], eight["counted"], strict=True):
    assert held == [local] * 8
    assert local < total < 8 * local
  total = eight["table"].splitlines()[-1].split()
  expected = [
    sum(sizes) / 2**20 for sizes in zip(*eight["counted"], strict=True)
  ]
  assert [float(x) for x in total[1:]] == pytest.approx(expected, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
  "words",
  [
    ("data=4,fsdp=2", "data=2,context=4"),
    ("experts", "data=2,fsdp=4", "data=2,context=2,tensor=2"),
  ],
  ids=["dense", "experts"],
)
def test_other_meshes_give_the_same_loss_curve(words):
  one, *others = result(run(8, SCRIPTS / "loss_curve.py", "data=1", *words))
  assert len(others) == 2
  for sharded in others:
    compare(sharded, one)


@pytest.mark.long
def test_a_run_of_eight_devices_resumes_on_one(tmp_path):
  """Trained and sampled on eight; resumed two steps earlier on one."""
  flags = small_flags(mesh__fsdp=2, mesh__context=2)
  words = ["--config=configs/digits.py", *flags]
  eight, one = tmp_path / "eight", tmp_path / "one"
  printed = run(8, "lumina_jax.train", *words, f"--workdir={eight}")
  assert "on 8 x cpu (data 2, fsdp 2, context 2)" in printed
  assert (eight / "samples" / "step_000006.png").exists()
  shutil.copytree(eight, one)
  shutil.rmtree(one / "checkpoints" / "6")
  shutil.rmtree(one / "samples")
  words += ["--config.mesh.fsdp=1", "--config.mesh.context=1"]
  words += ["--allow_config_change", f"--workdir={one}"]
  assert "resumed at step 4" in run(1, "lumina_jax.train", *words)
  losses = [[row["loss"] for row in metrics.read(w)] for w in (eight, one)]
  assert len(losses[1]) == 6
  np.testing.assert_allclose(*losses, rtol=1e-4)
  run(1, "lumina_jax.infer", f"--workdir={one}", "--prompt=7",
      f"--output={tmp_path / 'samples'}")  # fmt: skip
