"""The state of a training run, and the shardings of its arrays."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.model.network import Network
from lumina_jax.parallel import mesh as meshes
from lumina_jax.parallel.placement import with_shardings
from lumina_jax.training.optimizer import moment_shardings

Path = tuple[str, ...]


class TrainState(NamedTuple):
  """Everything that a checkpoint holds and a resumed run needs.

  Attributes:
    step: `i32[]`, number of batches so far.
    skipped: `i32[]`, number of batches that changed nothing, since their loss
      or gradient was not finite.
    params: parameters.
    ema: average of the parameters, with the same shapes and shardings.
    opt_state: state of the optimizer; it counts updates, step - skipped.
  """

  step: Any
  skipped: Any
  params: Any
  ema: Any
  opt_state: Any


def state_shardings(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of a state; EMA and moments lie like the parameters.

  Args:
    network: the network to train.
    tx: its optimizer.
    mesh: mesh of devices.
  """
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  params = nn.unbox(boxed)
  opt_state = jax.eval_shape(tx.init, params)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  abstract = TrainState(count, count, params, params, opt_state)
  sharded = meshes.shardings(boxed, mesh)
  replicated = meshes.replicated(mesh)
  moments = moment_shardings(tx, opt_state, sharded, replicated)
  shardings = TrainState(replicated, replicated, sharded, sharded, moments)
  return abstract, shardings


def abstract_state(
  network: Network, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """A state of `ShapeDtypeStruct`s with shardings."""
  return with_shardings(*state_shardings(network, tx, mesh))


def create_state(
  network: Network,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  seed: int,
  params: Iterable[tuple[Path, np.ndarray]] | None = None,
) -> TrainState:
  """A state at step 0, each array created where it lies.

  Args:
    network: the network to train.
    tx: its optimizer.
    mesh: mesh of devices.
    seed: seed of random parameters.
    params: paths and values of parameters to start from; all others are random.
  """
  _, shardings = state_shardings(network, tx, mesh)

  def create(key):
    params = nn.unbox(network.init(key))
    ema = jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, ema, tx.init(params))

  state = jax.jit(create, out_shardings=shardings)(jax.random.key(seed))
  return state if params is None else replace_params(state, params)


def replace_params(
  state: TrainState, params: Iterable[tuple[Path, np.ndarray]]
) -> TrainState:
  """Replaces parameters of a new state, and their EMA.

  Arrays are placed on the devices one by one. Each of several processes gets
  whole arrays and keeps the shards of its devices.

  Args:
    state: a state that is donated.
    params: paths, e.g. ("backbone", "pad"), and values.
  """
  jax.tree.map(lambda x: x.delete(), state.ema)
  flat = traverse_util.flatten_dict(state.params)
  for path, array in params:
    sharding = flat[path].sharding
    flat[path].delete()  # No device holds it twice.
    flat[path] = jax.make_array_from_callback(
      array.shape, sharding, array.__getitem__
    ).block_until_ready()
  new = traverse_util.unflatten_dict(flat)
  # The training step donates its state: the EMA needs arrays of its own.
  copy = jax.jit(
    lambda tree: jax.tree.map(jnp.copy, tree),
    out_shardings=jax.tree.map(lambda x: x.sharding, new),
  )
  return state._replace(params=new, ema=copy(new))
