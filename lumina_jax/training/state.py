"""What a training run is at one moment, and where its arrays live."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from lumina_jax.model.network import Network
from lumina_jax.parallel import mesh as meshes
from lumina_jax.training.optimizer import moment_shardings


class TrainState(NamedTuple):
  """What is saved, and what a resumed run goes on from.

  Attributes:
    step: `i32[]`, batches taken.
    skipped: `i32[]`, how many of them changed nothing, since their loss or
      their gradient was not finite.
    params: parameters.
    ema: their average, of equal shape and sharding, as are the moments.
    opt_state: of the optimizer, which counts updates: step - skipped.
  """

  step: Any
  skipped: Any
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
  of_moments = moment_shardings(tx, moments, of_params, everywhere)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  abstract = TrainState(count, count, params, params, moments)
  placed = TrainState(everywhere, everywhere, of_params, of_params, of_moments)
  return abstract, placed


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


def create_state(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
  """A fresh state, each array born on the devices that will hold it."""
  _, placed = state_shardings(network, tx, mesh)

  def create(key):
    params = nn.unbox(network.init(key))
    ema = jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, ema, tx.init(params))

  return jax.jit(create, out_shardings=placed)(jax.random.key(seed))
