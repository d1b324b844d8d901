"""Published networks on several meshes: no mesh axis is dropped."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from lumina_jax.backbone import DiT
from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.parallel.mesh import AXES, mesh_axes, shardings
from lumina_jax.tokens import Condition, Tokens
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.run_config import parse
from lumina_jax.training.state import TrainState, state_shardings

# (data, fsdp, context, tensor)
MESHES = [(1, 64, 1, 1), (2, 4, 4, 2), (1, 1, 16, 8), (4, 2, 2, 4)]


def abstract(degrees) -> AbstractMesh:
  return AbstractMesh(degrees, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@functools.cache
def traced(name):
  """Boxed shapes of a network, and the logical axes of its activations."""
  cfg, activations = PUBLISHED[name], set()
  rows, length = 2, 4

  def constrain(x, names):
    assert len(names) == x.ndim
    activations.add(tuple(names))
    return x

  segments = jnp.ones((rows, length), jnp.int32)
  tokens = Tokens(
    patches=jnp.zeros((rows, length, cfg.patch_dim)),
    ids=jnp.zeros((rows, length, cfg.position_axes), jnp.int32),
    kinds=jnp.zeros((rows, length), jnp.int32),
    segments=segments,
  )
  condition = Condition(
    time=jnp.zeros((rows, 1)),
    label=jnp.zeros((rows, 1), jnp.int32),
    text=jnp.zeros((rows, length, cfg.text_width)),
    text_segments=segments,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nn, "with_logical_constraint", constrain)
    boxed = jax.eval_shape(DiT(cfg).init, jax.random.key(0), tokens, condition)[
      "params"
    ]
  return boxed, activations


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_axis_is_dropped_on_any_mesh(name):
  """`shardings` raises if one is, and every large kernel is sharded."""
  boxed, _ = traced(name)
  for degrees in MESHES:
    mesh = abstract(degrees)
    placed = shardings(boxed, mesh)
    for array, sharding in zip(
      jax.tree.leaves(nn.unbox(boxed)), jax.tree.leaves(placed), strict=True
    ):
      shards = math.prod(array.shape) // math.prod(
        sharding.shard_shape(array.shape)
      )
      if math.prod(array.shape) > 2**22:
        assert shards >= mesh.shape["fsdp"] * mesh.shape["context"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_activations_name_no_mesh_axis_twice(name):
  activations = traced(name)[1]
  assert ("act_batch", "act_length", "act_embed") in activations
  for names in activations:
    used = [axis for logical in names for axis in mesh_axes(logical)]
    assert len(used) == len(set(used)), names


@pytest.mark.parametrize(
  ("family", "variant"),
  [
    ("text_to_image", "flag_7b"),
    ("text_to_image", "next_2b_gqa"),
    ("text_to_video", "next_2b"),
    ("imagenet", "moe_both_600m"),
  ],
)
def test_ema_and_moments_are_sharded_like_their_parameters(family, variant):
  run = parse(importlib.import_module(f"configs.{family}").get_config(variant))
  optimizer = make_optimizer(run.optimizer, 10)
  mesh = abstract((2, 4, 2, 4))
  state, placed = state_shardings(run.network, optimizer, mesh)
  assert isinstance(placed, TrainState)
  param_shardings = jax.tree.leaves(placed.params)
  assert jax.tree.leaves(placed.ema) == param_shardings
  # Adam has two moments per parameter, and counts of steps.
  shapes = jax.tree.leaves(state.opt_state)
  moments = [
    sharding
    for shape, sharding in zip(
      shapes, jax.tree.leaves(placed.opt_state), strict=True
    )
    if shape.ndim
  ]
  assert moments == param_shardings * 2
  counts = len(shapes) - len(moments)
  assert 0 < counts == sum(not shape.ndim for shape in shapes)
