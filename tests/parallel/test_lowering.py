"""Real programs lower for TPU on a machine without one."""

import subprocess
import sys

import jax
import pytest
from support.configs import ROOT, small_config

from benchmarks import one_chip
from lumina_jax.attention import kernels
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state


@pytest.fixture
def for_tpu(monkeypatch):
  """Selects kernels as on a TPU."""
  monkeypatch.setattr(kernels, "device", lambda: ("tpu", "TPU v5 lite"))


@pytest.mark.parametrize(
  ("variant", "dtype", "kernel"),
  [
    ("flag", "float32", "chunked"),
    ("next", "bfloat16", "auto"),
  ],
)
def test_train_step_lowers_for_tpu(variant, dtype, kernel, for_tpu):
  config = small_config(
    variant, model__dtype=dtype, model__attention_kernel=kernel
  )
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  tx = make_optimizer(config.optimizer, config.training.steps)
  batch = make_batches(config).batch(0)
  network = config.network
  pure = steps.make_train_step(network, tx, config.time, 0.99, config.seed)
  with jax.set_mesh(mesh):
    step = steps.jit_train_step(pure, network, tx, mesh, batch)
    traced = step.trace(abstract_state(network, tx, mesh), batch)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "stablehlo.dot_general" in text
  assert ("bf16" in text) == (dtype == "bfloat16")
  assert ("tpu_custom_call" in text) == (kernel == "auto")


@pytest.mark.parametrize("name", ["language model", "sampler", "decoder"])
def test_programs_of_a_published_pipeline_lower_for_tpu(name, for_tpu):
  function, args = one_chip.programs(1024)[name]
  text = (
    jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
  )
  assert ("bf16" in text) == (name != "decoder")
  assert ("tpu_custom_call" in text) == (name == "sampler")
  assert "stablehlo.dot_general" in text


@pytest.mark.compiler
def test_a_published_pipeline_fits_one_chip():
  """The real compiler, for a v5e; the decoder for small images."""
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.one_chip", "--pixels=512"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("peak") == 3
