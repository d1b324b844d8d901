"""Weights of another run or of PyTorch's format start a run."""

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
from lumina_jax.training import run_config


@pytest.mark.e2e
def test_a_stage_trains_on_with_a_frozen_text_encoder(tmp_path):
  """Larger images, Muon, and the text encoder of the first stage."""
  first = tiny_config("text_to_image", training__steps=2)
  folders = [epath.Path(tmp_path / name) for name in ("first", "second")]
  for folder in folders:
    folder.mkdir()
  before = train(first, folders[0])
  second = tiny_config(
    "text_to_image",
    training__steps=2,
    data__sizes=((16, 16),),
    data__row_tokens=4 * 64,
    optimizer__warmup_steps=0,
    optimizer__name="muon",
    optimizer__frozen=("^text_encoder/",),
  )
  second = dataclasses.replace(second, init_from=str(folders[0]))
  after = train(second, folders[1])
  loaded = run_config.load(folders[1])
  assert loaded.optimizer.frozen == ("^text_encoder/",)
  for tree in (after.params, after.ema):
    jax.tree.map(
      np.testing.assert_array_equal,
      tree["text_encoder"],
      before.ema["text_encoder"],
    )
  change = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - b).max(),
    after.params["backbone"]["blocks"]["feed_forward"],
    before.ema["backbone"]["blocks"]["feed_forward"],
  )
  assert all(0 < x < 0.1 for x in jax.tree.leaves(change))
  again = train(second, folders[1])  # Restores its last checkpoint.
  jax.tree.map(np.testing.assert_array_equal, again, after)


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
