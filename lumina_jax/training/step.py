"""One training step: times, noise, prediction, loss, update. One program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from lumina_jax.flow import loss as losses
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.noise import sample_keys, token_noise
from lumina_jax.network import Network, Params
from lumina_jax.parallel import mesh as meshes
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token
from lumina_jax.training.optimizer import average
from lumina_jax.training.state import TrainState, state_shardings

Batch = tuple[Tokens, Condition]
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


class FlowLoss(NamedTuple):
  """Losses of the samples of a batch.

  Attributes:
    loss: `f32[B, N]`, zero where there is no sample.
    exists: `bool[B, N]`, whether there is one.
    times: `f32[B, N]` that they were taken at.
    balance: `f32[]`, how unequally experts are used; None if it has no weight.
  """

  loss: jax.Array
  exists: jax.Array
  times: jax.Array
  balance: jax.Array | None

  @property
  def mean(self) -> jax.Array:
    """`f32[]`, every sample weighing the same."""
    return self.loss.sum() / jnp.maximum(self.exists.sum(), 1)


def flow_loss(
  network: Network,
  params: Params,
  batch: Batch,
  times: TimeDistribution,
  key: jax.Array,
) -> FlowLoss:
  """Flow-matching losses of a batch.

  Args:
    network: predicts what its objective asks for.
    params: its parameters.
    batch: tokens of data, and their condition with prompt codes.
    times: distribution of t, which the objective may keep from the ends.
    key: with a sample's id it fixes that sample's time and noise.
  """
  tokens, condition = batch
  keys = sample_keys(key, condition.sample_ids)
  keys_time, keys_noise = (
    jax.vmap(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i)))(keys)
    for i in range(2)
  )
  objective, samples = network.objective, keys.shape[1]
  x1 = tokens.patches
  real = (tokens.kinds == PATCH) & (tokens.segments != 0)
  sizes = losses.sizes(tokens.segments, samples)
  t = objective.within(times.sample(keys_time, sizes))
  of_token = per_token(t[..., None], tokens.segments)
  noise = token_noise(keys_noise, tokens.segments, x1.shape[-1])
  x0 = jnp.where(real[..., None], noise, 0)
  x_t = objective.interpolate(x0, x1, of_token)
  condition = network.encode(params, condition._replace(time=t))
  inputs = params, tokens._replace(patches=x_t), condition
  if network.model.balance_weight:
    predicted, balance = network.prediction_and_balance(*inputs)
  else:
    predicted, balance = network.prediction(*inputs), None
  error = objective.error(predicted, x0, x1, of_token)
  loss, exists = losses.per_sample(error, real, tokens.segments, samples)
  return FlowLoss(loss, exists, t, balance)


def make_train_step(
  network: Network,
  tx: optax.GradientTransformation,
  times: TimeDistribution,
  ema_decay: float,
  seed: int,
) -> Step:
  """The step as a pure function: (state, batch) -> (state, metrics).

  Every random number is folded from (seed, step, sample id, token index), so
  that a resumed run needs no generator state.
  """

  def train_step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def objective(params):
      flow = flow_loss(network, params, batch, times, key)
      loss = flow.mean
      values = {"loss": loss, "samples": flow.exists.sum()}
      if flow.balance is not None:
        values["balance"] = flow.balance
        loss += network.model.balance_weight * flow.balance
      return loss, values

    (_, values), grads = jax.value_and_grad(objective, has_aux=True)(
      state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = average(state.ema, params, state.step, ema_decay)
    metrics = values | {
      "grad_norm": optax.tree.norm(grads),
      "useful_tokens": jnp.mean(batch[0].segments != 0),
    }
    return TrainState(state.step + 1, params, ema, opt_state), metrics

  return train_step


def compile_step(
  step: Step,
  network: Network,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  batch: Batch,
) -> Any:
  """Jits the step for a mesh: states donated, arrays where the rules put them.

  Args:
    step: from `make_train_step`.
    network: whose state it updates.
    tx: its optimizer.
    mesh: of devices.
    batch: an example, for its structure.
  """
  _, placed = state_shardings(network, tx, mesh)

  def under_rules(state, batch):
    with nn.logical_axis_rules(meshes.RULES):
      return step(state, batch)

  return jax.jit(
    under_rules,
    in_shardings=(placed, batch_shardings(batch, mesh)),
    out_shardings=(placed, meshes.replicated(mesh)),
    donate_argnums=0,
  )


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
  """Rows over (data, fsdp), the length of tokens over context too."""
  tokens, condition = batch
  return (
    jax.tree.map(lambda _: NamedSharding(mesh, meshes.ROWS_LENGTH), tokens),
    jax.tree.map(lambda _: NamedSharding(mesh, meshes.ROWS), condition),
  )


def process_rows(rows: int, mesh: Mesh) -> range:
  """Rows of a batch of so many that devices of this process hold.

  Processes share rows out as the mesh does; where one row lies on devices of
  several, each of them makes it.

  Raises:
    ValueError: if they are not next to each other.
  """
  sharding = NamedSharding(mesh, meshes.ROWS)
  held = sharding.addressable_devices_indices_map((rows,)).values()
  found = {row for (index,) in held for row in range(*index.indices(rows))}
  if len(found) != max(found) - min(found) + 1:
    raise ValueError(
      f"process {jax.process_index()} holds rows {sorted(found)} of a batch, "
      "which are not next to each other; choose another config.mesh"
    )
  return range(min(found), max(found) + 1)


def place_batch(batch: Batch, mesh: Mesh, rows: int | None = None) -> Batch:
  """Host rows of every process -> one global batch on the devices.

  Args:
    batch: the rows of `process_rows`.
    mesh: of devices.
    rows: of the global batch; None = this process has all of them.
  """

  def place(sharding, local):
    local = np.asarray(local)
    shape = (rows or len(local), *local.shape[1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return jax.tree.map(place, batch_shardings(batch, mesh), batch)
