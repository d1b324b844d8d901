"""Weights of a run, handed to PyTorch's format, begin another run."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny_config
from etils import epath

from lumina_jax import convert, train
from lumina_jax.interop.weights import gather
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state


@pytest.fixture(scope="module")
def config():
  return tiny_config("imagenet", training__steps=1)


@pytest.fixture(scope="module")
def original(config, tmp_path_factory):
  """A folder of the original code with random weights, none of them zero."""
  from lumina_jax.interop import save_pytorch

  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32),
    config.network.shapes()["backbone"],
  )
  folder = tmp_path_factory.mktemp("weights") / "original"
  save_pytorch(params, config.model, folder)
  return folder, params


def test_a_run_begins_with_exactly_the_weights(config, original):
  folder, params = original
  mesh = make_mesh(config.mesh)
  optimizer = make_optimizer(config.optimizer, 1)
  tuned = dataclasses.replace(config, init_from=str(folder))
  state = train.first_state(tuned, optimizer, mesh)
  fresh = create_state(config.network, optimizer, mesh, config.seed)
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree["backbone"], params)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.sharding, b.sharding),
    state,
    fresh,
  )
  # The step gives its state away: nothing may be shared.
  assert (
    state.params["backbone"]["final"]["kernel"].unsafe_buffer_pointer()
    != state.ema["backbone"]["final"]["kernel"].unsafe_buffer_pointer()
  )


def test_weights_of_another_network_are_refused(config, original):
  model = dataclasses.replace(config.model, depth=3, num_labels=11)
  other = dataclasses.replace(config, init_from=str(original[0]), model=model)
  with pytest.raises(ValueError, match=r"depth = 3, there 2.*num_labels = 11"):
    train.first_state(other, make_optimizer(config.optimizer, 1), None)


@pytest.mark.slow
def test_trained_on_and_handed_back(config, original, tmp_path):
  folder, before = original
  workdir, back = epath.Path(tmp_path / "run"), tmp_path / "back"
  workdir.mkdir()
  state = train.train(
    dataclasses.replace(config, init_from=str(folder)), workdir
  )
  convert.convert(tmp_path / "run", back, "lumina", ema=False)
  weights = convert.open_weights(back)
  jax.tree.map(
    np.testing.assert_array_equal, gather(weights), state.params["backbone"]
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), before, gather(weights)
  )
  assert 0 < max(jax.tree.leaves(moved)) < 0.1
