"""What a training run is at one moment, and where its arrays live."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.backbone.config import COMPUTING, ModelConfig
from lumina_jax.interop.weights import Weights, paths
from lumina_jax.network import Network
from lumina_jax.parallel import mesh as meshes


class TrainState(NamedTuple):
  """Attributes: step `i32[]`, updates done; then trees of equal sharding."""

  step: Any
  params: Any
  ema: Any
  opt_state: Any


def state_shardings(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
  """Abstract state and its shardings; moments and EMA like the parameters."""
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  params = nn.unbox(boxed)
  of_params = meshes.shardings(boxed, mesh)
  everywhere = meshes.replicated(mesh)
  moments = jax.eval_shape(tx.init, params)
  of_moments = optax.tree.map_params(
    tx,
    lambda _, sharding: sharding,
    moments,
    of_params,
    transform_non_params=lambda _: everywhere,
  )
  step = jax.ShapeDtypeStruct((), jnp.int32)
  abstract = TrainState(step, params, params, moments)
  return abstract, TrainState(everywhere, of_params, of_params, of_moments)


def abstract_state(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Shapes and shardings of a state, with no memory behind them."""
  abstract, placed = state_shardings(network, tx, mesh)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    placed,
  )


def begin_with(state: TrainState, weights: Weights) -> TrainState:
  """A fresh state whose backbone and its average are weights from elsewhere.

  They are read and placed on the devices one at a time.

  Args:
    state: from `create_state`; given away.
    weights: of the same network, see `check_same_network`.
  """
  for leaf in jax.tree.leaves(state.ema):
    leaf.delete()
  flat = traverse_util.flatten_dict(state.params)
  for path in paths(weights.cfg):
    mine = ("backbone", *path)
    array = weights.read(path, np.dtype(np.float32))
    flat[mine].delete()  # No device shall hold it twice.
    flat[mine] = jax.device_put(array, flat[mine].sharding)
  params = traverse_util.unflatten_dict(flat)
  # The step gives its state away, so the average needs arrays of its own.
  return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


def check_same_network(cfg: ModelConfig, weights: Weights, path: str) -> None:
  """Compares what is trained with what it shall begin with.

  Raises:
    ValueError: naming the fields of the model that differ.
  """
  # How it computes and starts, and how its feed-forward came to its width.
  free = {*COMPUTING, "balance_weight", "zero_text_pool"}
  free |= {"ffn_multiple", "ffn_factor"}
  names = [f.name for f in dataclasses.fields(cfg) if f.name not in free]
  wrong = [
    f"model.{name} = {getattr(cfg, name)!r}, there "
    f"{getattr(weights.cfg, name)!r}"
    for name in (*names, "ffn_width")
    if getattr(cfg, name) != getattr(weights.cfg, name)
  ]
  if wrong:
    raise ValueError(
      f"init_from = {path} is of another network: {'; '.join(wrong)}"
    )


def create_state(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
  """A fresh state, each array born on the devices that will hold it."""
  _, placed = state_shardings(network, tx, mesh)

  def create(key):
    params = nn.unbox(network.init(key))
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, tx.init(params))

  return jax.jit(create, out_shardings=placed)(jax.random.key(seed))
