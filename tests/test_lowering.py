"""The real train step lowers for TPU, on a machine that has none."""

import jax
import pytest
from conftest import small_config

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.train import make_batches
from lumina_jax.training import step as steps
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state


@pytest.mark.parametrize("variant", ["flag", "next"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_step_lowers_for_tpu(variant, dtype):
  config = small_config(variant, model__dtype=dtype)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  tx = make_optimizer(config.optimizer, config.training.steps)
  batch = make_batches(config).batch(0)
  network = config.network
  pure = steps.make_train_step(network, tx, config.time, 0.99, config.seed)
  with jax.set_mesh(mesh):
    step = steps.compile_step(pure, network, tx, mesh, batch)
    traced = step.trace(abstract_state(network, tx, mesh), batch)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "stablehlo.dot_general" in text
  assert ("bf16" in text) == (dtype == "bfloat16")
