"""One training step: times, noise, prediction, loss, update. One program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
from lumina_jax.training.optimizer import average, schedule, trainable
from lumina_jax.training.state import TrainState, state_shardings

if TYPE_CHECKING:
  from lumina_jax.training.run_config import RunConfig

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
  network: Network,
  tx: optax.GradientTransformation,
  times: TimeDistribution,
  ema_decay: float,
  seed: int,
  *,
  microbatches: int = 1,
  rates: optax.Schedule | None = None,
  trained: Callable[[Any], Any] | None = None,
) -> Step:
  """The step as a pure function: (state, batch) -> (state, metrics).

  Every random number is folded from (seed, step, sample id, token index), so
  that a resumed run needs no generator state.

  A batch whose loss or gradient is not finite changes nothing: parameters,
  average and optimizer stay what they are, it is taken off the data all the
  same, and counted.

  Args:
    network: to train.
    tx: its optimizer.
    times: distribution of t.
    ema_decay: of the average of the parameters.
    seed: of times and noise.
    microbatches: that a batch is taken in.
    rates: learning rate by updates done, to be told among the metrics.
    trained: parameters -> a tree of bool, False for what stays as it is; None
      = all are trained.
  """

  def train_step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, values = flow_gradient(
      network, state.params, batch, times, key, microbatches
    )
    moves = trained and trained(state.params)
    if moves:  # What is frozen needs no gradient: XLA then computes none.
      grads = jax.tree.map(
        lambda g, m: g if m else jnp.zeros_like(g), grads, moves
      )
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    done = state.step - state.skipped
    ema = average(state.ema, params, done, ema_decay, moves)
    finite = jnp.isfinite(values["loss"]) & jnp.isfinite(grad_norm)
    old = state.params, state.ema, state.opt_state
    kept = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, ema, opt_state),
      old,
    )
    skipped = state.skipped + (1 - finite.astype(jnp.int32))
    metrics = values | {
      "grad_norm": grad_norm,
      "update_norm": optax.tree.norm(updates),
      "finite": finite,
      "tokens": jnp.sum(batch[0].segments != 0),
      "useful_tokens": jnp.mean(batch[0].segments != 0),
    }
    if rates is not None:
      metrics["learning_rate"] = rates(done)
    return TrainState(state.step + 1, skipped, *kept), metrics

  return train_step


def configured(
  config: RunConfig,
  tx: optax.GradientTransformation,
  microbatches: int | None = None,
) -> Step:
  """The step of a run; `tx` is its optimizer, microbatches None = its own."""
  plan, optimizer = config.training, config.optimizer
  return make_train_step(
    config.network,
    tx,
    config.time,
    optimizer.ema_decay,
    config.seed,
    microbatches=microbatches or plan.microbatches,
    rates=schedule(optimizer, plan.steps),
    trained=functools.partial(trainable, optimizer),
  )


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


def ahead(
  step: Any, state: TrainState, batch: Batch, mesh: Mesh, rows: int
) -> Step:
  """Compiles a step before it runs, and waits for all processes to have it.

  Compiling may take one of them a minute longer than another, and a collective
  that is waited for so long is taken for dead.

  Args:
    step: of `compile_step`.
    state: that it will be given; nothing happens to it.
    batch: an example of this process's rows.
    mesh: of devices.
    rows: of the global batch.

  Returns:
    The step, which takes arrays of these shapes only.
  """
  placed = place_batch(batch, mesh, rows)
  compiled = step.lower(state, placed).compile()
  processes.barrier("compiled")
  return compiled


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
