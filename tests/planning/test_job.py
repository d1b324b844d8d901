"""Jobs: defaults of options, and options that are refused."""

import jax
import pytest
from support.configs import small_config

from configs import text_to_image
from lumina_jax.parallel.chips import CHIPS
from lumina_jax.parallel.mesh import MeshConfig
from lumina_jax.parallel.topology import Topology
from lumina_jax.planning.job import (
  count_parameters,
  default_mesh_shape,
  make_job,
)
from lumina_jax.training import run_config


def machine(devices: int, chip: str = "v5e") -> Topology:
  """Devices that are only counted."""
  return Topology(f"{chip}:?", CHIPS[chip], tuple(jax.devices()[:1] * devices))


@pytest.fixture(scope="module")
def flag_5b():
  return run_config.parse(text_to_image.get_config("flag_5b"))


@pytest.mark.parametrize(
  ("devices", "tokens", "shape"),
  [
    (1, 131_072, (1, 1, 1, 1)),
    (16, 4096, (1, 16, 1, 1)),
    (16, 16_384, (1, 8, 2, 1)),
    (16, 131_072, (1, 1, 16, 1)),
    (64, 131_072, (1, 4, 16, 1)),
    (2048, 4096, (2, 1024, 1, 1)),  # The gcd of its widths is 1024.
    (8, 3 * 8192, (1, 4, 2, 1)),
    (6, 131_072, (3, 1, 2, 1)),  # 3 does not divide them.
  ],
)
def test_the_default_mesh(flag_5b, devices, tokens, shape):
  assert default_mesh_shape(flag_5b, devices, tokens) == shape


def test_tokens_make_one_sample_a_row(flag_5b):
  job = make_job(flag_5b, machine(16), tokens=16_384, rows=2)
  assert job.budget == (16_384, 128, 1)
  assert (job.rows, job.rows_per_shard) == (16, 2)
  assert job.device_tokens == 16_384


def test_without_tokens_the_batch_is_the_configs():
  config = small_config()
  job = make_job(config, machine(1))
  assert job.budget == config.data.budget
  assert job.rows == config.training.batch_rows
  job = make_job(config, machine(1), sample=True)
  assert job.budget == config.sizes.ladder[-1]
  assert job.rows == config.sizes.rows
  assert job.forward_passes == config.sampling.num_inference_steps


def test_a_changed_mesh_keeps_rows_per_shard(flag_5b):
  job = make_job(flag_5b, machine(16), tokens=4096)
  other = job.replace(mesh_shape=(1, 8, 2, 1), rows_per_shard=4, remat="none")
  assert (other.rows, other.model.remat) == (32, "none")
  assert job.model.remat == "full"


def test_parameters_are_counted(flag_5b):
  text = flag_5b.network.shapes()["text_encoder"]
  encoder = sum(x.size for x in jax.tree.leaves(text))
  assert count_parameters(flag_5b) - encoder == pytest.approx(5.0e9, rel=0.02)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(mesh=MeshConfig(data=3)), "needs 3 devices, there are 8"),
    (
      dict(mesh=MeshConfig(data=1, context=8), tokens=1004),
      "1004 tokens of a row do not divide over context = 8",
    ),
    (
      dict(mesh=MeshConfig(data=1, tensor=8), tokens=1024),
      "heads = 2 do not divide over tensor = 8",
    ),
    (
      dict(remat="ful"),
      "unknown remat 'ful'; did you mean 'full'.*offload_hidden",
    ),
    (
      dict(words=100, tokens=128),
      "words = 100: use a multiple of 128, e.g. 128",
    ),
    (dict(tokens=128, rows=0), "must be positive"),
    (dict(tokens=0), "must be positive"),
  ],
)
def test_contradictory_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make_job(small_config(), machine(8), **options)


def test_rows_must_divide():
  with pytest.raises(ValueError, match="8 rows do not divide over data x fsdp"):
    make_job(small_config(), machine(3), mesh=MeshConfig(data=3))
