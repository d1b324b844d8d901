"""The training step as one program: times, noise, prediction, loss, update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.model.network import Network
from lumina_jax.parallel import mesh as meshes
from lumina_jax.parallel import processes
from lumina_jax.training.gradient import Batch, flow_gradient
from lumina_jax.training.optimizer import update_ema
from lumina_jax.training.parameter_groups import trainable_mask
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.schedule import make_schedule
from lumina_jax.training.state import TrainState, state_shardings

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
  network: Network,
  tx: optax.GradientTransformation,
  times: TimeDistribution,
  ema_decay: float,
  seed: int,
  *,
  microbatches: int = 1,
  schedule: optax.Schedule | None = None,
  trainable: Callable[[Any], Any] | None = None,
) -> Step:
  """The step as a pure function: (state, batch) -> (state, metrics).

  Every random number depends on (seed, step, sample id, token index) only, so
  that a resumed run needs no generator state.

  A batch whose loss or gradient is not finite counts as a step and as skipped,
  and changes neither parameters nor EMA nor the optimizer's state.

  Args:
    network: the network to train.
    tx: its optimizer.
    times: distribution of t.
    ema_decay: decay of the EMA of the parameters.
    seed: seed of times and noise.
    microbatches: number of parts that a batch is processed in.
    schedule: learning rate by number of updates, for the metrics.
    trainable: maps parameters to a tree of bool, False for those that stay as
      they are; None: all are trained.
  """

  def train_step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, metrics = flow_gradient(
      network, state.params, batch, times, key, microbatches
    )
    mask = trainable and trainable(state.params)
    if mask:  # XLA does not compute gradients of frozen parameters.
      grads = jax.tree.map(
        lambda g, m: g if m else jnp.zeros_like(g), grads, mask
      )
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.step - state.skipped
    ema = update_ema(state.ema, params, count, ema_decay, mask)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    kept = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, ema, opt_state),
      (state.params, state.ema, state.opt_state),
    )
    skipped = state.skipped + (1 - finite.astype(jnp.int32))
    metrics |= {
      "grad_norm": grad_norm,
      "update_norm": optax.tree.norm(updates),
      "finite": finite,
      "tokens": jnp.sum(batch[0].segments != 0),
      "useful_tokens": jnp.mean(batch[0].segments != 0),
    }
    if schedule is not None:
      metrics["learning_rate"] = schedule(count)
    return TrainState(state.step + 1, skipped, *kept), metrics

  return train_step


def train_step_for(
  config: RunConfig,
  tx: optax.GradientTransformation,
  microbatches: int | None = None,
) -> Step:
  """The step of a run, as a pure function.

  Args:
    config: config of the run.
    tx: its optimizer.
    microbatches: replaces `config.training.microbatches`.
  """
  plan, optimizer = config.training, config.optimizer
  return make_train_step(
    config.network,
    tx,
    config.time,
    optimizer.ema_decay,
    config.seed,
    microbatches=microbatches or plan.microbatches,
    schedule=make_schedule(optimizer, plan.steps),
    trainable=functools.partial(trainable_mask, optimizer),
  )


def jit_train_step(
  step: Step,
  network: Network,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  batch: Batch,
) -> Any:
  """Jits a step for a mesh; it donates its state.

  Args:
    step: step from `make_train_step`.
    network: the network to train.
    tx: its optimizer.
    mesh: mesh of devices.
    batch: an example, for its structure.
  """
  _, shardings = state_shardings(network, tx, mesh)

  def with_rules(state, batch):
    with nn.logical_axis_rules(meshes.RULES):
      return step(state, batch)

  return jax.jit(
    with_rules,
    in_shardings=(shardings, batch_shardings(batch, mesh)),
    out_shardings=(shardings, meshes.replicated(mesh)),
    donate_argnums=0,
  )


def compile_train_step(
  config: RunConfig,
  tx: optax.GradientTransformation,
  state: TrainState,
  batch: Batch,
  mesh: Mesh,
) -> Step:
  """Compiles the step of a run, and waits until all processes have done so.

  One process may take a minute longer than another; a collective that waits
  for so long would count as dead.

  Args:
    config: config of the run.
    tx: its optimizer.
    state: an example; it is not donated.
    batch: an example of this process's rows.
    mesh: mesh of devices.

  Returns:
    The step, which accepts only arrays of these shapes.
  """
  step = train_step_for(config, tx)
  jitted = jit_train_step(step, config.network, tx, mesh, batch)
  placed = place_batch(batch, mesh, config.training.batch_rows)
  compiled = jitted.lower(state, placed).compile()
  processes.barrier("compiled")
  return compiled


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
  """Shards rows over (data, fsdp), and the length of tokens over context."""
  tokens, condition = batch
  return (
    jax.tree.map(lambda _: NamedSharding(mesh, meshes.ROWS_LENGTH), tokens),
    jax.tree.map(lambda _: NamedSharding(mesh, meshes.ROWS), condition),
  )


def process_rows(rows: int, mesh: Mesh) -> range:
  """The rows of a global batch that devices of this process hold.

  If a row lies on devices of several processes, each of them loads it.

  Args:
    rows: rows of the global batch.
    mesh: mesh of devices.

  Raises:
    ValueError: if the rows are not contiguous.
  """
  sharding = NamedSharding(mesh, meshes.ROWS)
  indices = sharding.addressable_devices_indices_map((rows,)).values()
  held = {row for (index,) in indices for row in range(*index.indices(rows))}
  if len(held) != max(held) - min(held) + 1:
    raise ValueError(
      f"process {jax.process_index()} holds rows {sorted(held)} of a batch, "
      "which are not contiguous; choose another config.mesh"
    )
  return range(min(held), max(held) + 1)


def place_batch(batch: Batch, mesh: Mesh, rows: int | None = None) -> Batch:
  """Places the rows of all processes on the devices as one global batch.

  Args:
    batch: this process's rows, see `process_rows`.
    mesh: mesh of devices.
    rows: rows of the global batch; None: this process has all of them.
  """

  def place(sharding, local):
    local = np.asarray(local)
    shape = (rows or len(local), *local.shape[1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return jax.tree.map(place, batch_shardings(batch, mesh), batch)
