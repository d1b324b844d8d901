"""Groups and frozen parameters: exact factors, no updates, no moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.configs import tiny_config

from lumina_jax.files import schema
from lumina_jax.training.optimizer import make_optimizer, update_ema
from lumina_jax.training.optimizer_config import OptimizerConfig
from lumina_jax.training.parameter_groups import (
  labels,
  matrix_mask,
  trainable_mask,
)

STEPS = 10
CFG = OptimizerConfig(
  learning_rate=1e-2,
  warmup_steps=2,
  decay="cosine",
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip=0.5,
  ema_decay=0.99,
)
SHAPES = {
  "backbone": {
    "blocks": {
      "attention": {"query": {"kernel": (2, 6, 2, 4)}, "text_gate": (2, 2)},
      "attention_norm": {"scale": (2, 6)},
    },
    "label_embed": (5, 6),
    "pad": (6,),
  },
  "text_encoder": {"bytes": (7, 3), "place": {"bias": (3,)}},
}


def config(**changes):
  return dataclasses.replace(CFG, **changes)


def random(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: rng.standard_normal(shape, np.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def run(cfg, grads=random, updates=4):
  """Parameters after some updates, and the optimizer's last state."""
  tx, params = make_optimizer(cfg, STEPS), random(0)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for number in range(1, updates + 1):
    changes, state = update(grads(number), state, params)
    params = optax.apply_updates(params, changes)
  return params, state


def assert_equal(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_group_is_adamw_of_its_own_rate_and_decay():
  """Without clipping groups do not see each other."""
  cfg = config(
    clip=1e9, groups=(("text_encoder", 0.5, 0.0), (r"/kernel$", 4.0, 0.3))
  )
  found, _ = run(cfg)
  plain, _ = run(config(clip=1e9))
  text, _ = run(config(clip=1e9, learning_rate=0.5e-2, weight_decay=0.0))
  kernels, _ = run(config(clip=1e9, learning_rate=4e-2, weight_decay=0.3))
  assert_equal(found["text_encoder"], text["text_encoder"])
  blocks = [tree["backbone"]["blocks"] for tree in (found, kernels, plain)]
  np.testing.assert_allclose(
    blocks[0]["attention"]["query"]["kernel"],
    blocks[1]["attention"]["query"]["kernel"],
    rtol=1e-6,
  )
  assert_equal(blocks[0]["attention_norm"], blocks[2]["attention_norm"])
  assert_equal(
    found["backbone"]["label_embed"], plain["backbone"]["label_embed"]
  )


def test_the_first_group_that_matches_wins():
  cfg = config(groups=(("label_embed", 1.0, 0.0), ("backbone", 2.0, 0.0)))
  found = labels(cfg, random(0))
  assert found["backbone"]["label_embed"] == "adamw_0"
  assert found["backbone"]["pad"] == "adamw_1"
  assert found["text_encoder"]["bytes"] == "adamw"


def test_groups_that_change_nothing_change_no_bit():
  groups = (("text_encoder", 1.0, CFG.weight_decay),)
  assert_equal(run(config(groups=groups))[0], run(CFG)[0])


def test_frozen_parameters_stay_and_the_rest_trains_as_if_alone():
  """Moments, clipping and weight decay ignore frozen parameters."""
  cfg = config(frozen=("^backbone/",))
  found, state = run(cfg)
  assert_equal(found["backbone"], random(0)["backbone"])
  assert not any(jax.tree.leaves(trainable_mask(cfg, found)["backbone"]))

  tx, alone = make_optimizer(CFG, STEPS), random(0)["text_encoder"]
  states = tx.init(alone)
  for number in range(1, 5):
    grads = random(number)["text_encoder"]
    changes, states = jax.jit(tx.update)(grads, states, alone)
    alone = optax.apply_updates(alone, changes)
  assert_equal(found["text_encoder"], alone)
  sizes = sorted(x.shape for x in jax.tree.leaves(state) if x.ndim)
  assert sizes == [(3,), (3,), (7, 3), (7, 3)]


def test_a_nan_gradient_of_a_frozen_parameter_does_no_harm():
  def grads(number):
    tree = random(number)
    tree["backbone"] = jax.tree.map(lambda x: x * np.nan, tree["backbone"])
    return tree

  cfg = config(frozen=("^backbone/",))
  assert_equal(run(cfg, grads)[0], run(cfg)[0])


def test_the_average_of_frozen_parameters_keeps_every_bit():
  params, cfg = random(0), config(frozen=("^backbone/",))
  trained = trainable_mask(cfg, params)
  keep = jax.jit(
    lambda ema, step: update_ema(ema, params, step, 0.99, trained),
  )
  ema = params
  for step in range(50):
    ema = keep(ema, jnp.asarray(step))
  assert_equal(ema["backbone"], params["backbone"])
  moved = update_ema(params, random(1), jnp.asarray(5), 0.99, trained)
  plain = update_ema(params, random(1), jnp.asarray(5), 0.99)
  assert_equal(moved["text_encoder"], plain["text_encoder"])
  assert_equal(moved["backbone"], params["backbone"])


@pytest.mark.parametrize("groups", [(), (("text_encoder", 1.0, 0.1),)])
def test_weight_decay_can_skip_vectors(groups):
  def zeros(_):
    return jax.tree.map(np.zeros_like, random(0))

  found, _ = run(config(decay_vectors=False, groups=groups), zeros)
  fell = jax.tree.map(
    lambda a, b: bool((np.abs(a) < np.abs(b)).all()), found, random(0)
  )
  assert fell == matrix_mask(random(0))
  assert sum(jax.tree.leaves(fell)) == 3
  assert all(
    (np.abs(a) < np.abs(b)).all()
    for a, b in zip(
      jax.tree.leaves(run(CFG, zeros)[0]),
      jax.tree.leaves(random(0)),
      strict=True,
    )
  )


@pytest.mark.parametrize("family", ["text_to_image", "imagenet"])
def test_vectors_of_a_network_are_named_as_such(family):
  network = tiny_config(family).network
  flat = jax.tree_util.tree_leaves_with_path(matrix_mask(network.shapes()))
  vectors = {path[-1].key for path, matrix in flat if not matrix}
  assert vectors <= {"scale", "bias", "text_gate", "pad"}


@pytest.mark.parametrize("field", ["frozen", "groups"])
def test_a_pattern_without_a_match_names_similar_parameters(field):
  pattern = "text_encoder/byte_table"
  value = (pattern,) if field == "frozen" else ((pattern, 1.0, 0.0),)
  cfg = config(**{field: value})
  with pytest.raises(ValueError, match=r"byte_table.*text_encoder/bytes"):
    trainable_mask(cfg, random(0))
  with pytest.raises(ValueError, match="byte_table"):
    make_optimizer(cfg, STEPS).init(random(0))


def test_freezing_everything_is_refused():
  with pytest.raises(ValueError, match="leaves no parameter to train"):
    trainable_mask(config(frozen=(".",)), random(0))


def test_a_config_file_can_hold_groups():
  values = schema.to_dict(
    config(groups=(("text_encoder", 0.1, 0.0),), frozen=("blocks",))
  )
  assert values["groups"] == [["text_encoder", 0.1, 0.0]]
  again = schema.parse(OptimizerConfig, values)
  assert again.groups == (("text_encoder", 0.1, 0.0),)
  assert (
    schema.parse(
      OptimizerConfig,
      {k: v for k, v in values.items() if k not in ("groups", "frozen")},
    )
    == config()
  )
