"""Weights in PyTorch's format start a run, and leave it."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from support.configs import tiny_config

from lumina_jax.interop import save_pytorch
from lumina_jax.interop.convert import convert
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.weights import read_all
from lumina_jax.train import train


@pytest.mark.e2e
def test_pytorch_weights_are_trained_and_converted_back(tmp_path):
  config = tiny_config("imagenet", training__steps=1)
  rng = np.random.default_rng(0)
  before = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32),
    config.network.shapes()["backbone"],
  )
  original, back = tmp_path / "original", tmp_path / "back"
  save_pytorch(before, config.model, original)
  workdir = epath.Path(tmp_path / "run")
  workdir.mkdir()
  state = train(dataclasses.replace(config, init_from=str(original)), workdir)
  convert(tmp_path / "run", back, "lumina", ema=False)
  after = read_all(open_weights(back))
  jax.tree.map(np.testing.assert_array_equal, after, state.params["backbone"])
  change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
  assert 0 < max(jax.tree.leaves(change)) < 0.1
