"""Weights of another run or of PyTorch's format begin a run."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from support.configs import tiny_config

from lumina_jax import convert, train
from lumina_jax.interop.weights import read_all
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import run_config
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


def test_what_agrees_of_another_network_is_taken_if_asked(
  config, original, capsys
):
  folder, params = original
  model = dataclasses.replace(config.model, num_labels=11)
  other = dataclasses.replace(
    config, init_from=str(folder), init_strict=False, model=model
  )
  mesh = make_mesh(config.mesh)
  state = train.first_state(other, make_optimizer(config.optimizer, 1), mesh)
  rest = dict(params)
  rest.pop("label_embed")
  for tree in (state.params, state.ema):
    found = dict(tree["backbone"])
    assert found.pop("label_embed").shape == (12, 64)
    jax.tree.map(np.testing.assert_array_equal, found, rest)
  said = capsys.readouterr().out
  assert "model.num_labels = 11, there 10" in said
  assert "backbone/label_embed: (12, 64), there (11, 64)" in said


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_trains_on_with_what_the_one_before_has_learnt(tmp_path):
  """Larger images, Muon; the text encoder of the first stage is frozen."""
  first = tiny_config("text_to_image", training__steps=2)
  runs = [epath.Path(tmp_path / name) for name in ("first", "second")]
  for run in runs:
    run.mkdir()
  before = train.train(first, runs[0])
  second = tiny_config(
    "text_to_image",
    training__steps=2,
    data__sizes=((16, 16),),
    data__row_tokens=4 * 64,
    optimizer__warmup_steps=0,
    optimizer__name="muon",
    optimizer__frozen=("^text_encoder/",),
  )
  second = dataclasses.replace(second, init_from=str(runs[0]))
  after = train.train(second, runs[1])
  assert run_config.load(runs[1]).optimizer.frozen == ("^text_encoder/",)
  for tree in (after.params, after.ema):
    jax.tree.map(
      np.testing.assert_array_equal,
      tree["text_encoder"],
      before.ema["text_encoder"],
    )
  moved = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - b).max(),
    after.params["backbone"]["blocks"]["feed_forward"],
    before.ema["backbone"]["blocks"]["feed_forward"],
  )
  assert all(0 < move < 0.1 for move in jax.tree.leaves(moved))
  again = train.train(second, runs[1])  # Its checkpoint is read back whole.
  jax.tree.map(np.testing.assert_array_equal, again, after)


@pytest.mark.slow
@pytest.mark.long
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
    np.testing.assert_array_equal, read_all(weights), state.params["backbone"]
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), before, read_all(weights)
  )
  assert 0 < max(jax.tree.leaves(moved)) < 0.1
