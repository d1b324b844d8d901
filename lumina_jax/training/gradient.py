"""Losses of a batch, and their gradient, taken at once or in microbatches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow import loss as losses
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.noise import sample_keys, token_noise
from lumina_jax.model.network import Network, Params
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token

Batch = tuple[Tokens, Condition]

TIME_BINS = 10  # Of the losses by time that training reports.


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

  @property
  def by_time(self) -> tuple[jax.Array, jax.Array]:
    """Sum of losses and number of samples in each time bin, `f32[10]` each."""
    bins = jnp.minimum((self.times * TIME_BINS).astype(int), TIME_BINS - 1)
    inside = jax.nn.one_hot(bins, TIME_BINS) * self.exists[..., None]
    each = jnp.where(self.exists, self.loss, 0)
    return jnp.einsum("bn,bnk->k", each, inside), inside.sum(axis=(0, 1))


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
  real = _real(tokens)
  sizes = losses.token_counts(tokens.segments, samples)
  t = objective.training_times(times.sample(keys_time, sizes))
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
  loss, exists = losses.per_sample_loss(error, real, tokens.segments, samples)
  return FlowLoss(loss, exists, t, balance)


def flow_gradient(
  network: Network,
  params: Params,
  batch: Batch,
  times: TimeDistribution,
  key: jax.Array,
  microbatches: int = 1,
) -> tuple[Params, dict[str, jax.Array]]:
  """Gradient of the mean loss over the samples of a batch, and what it was.

  Microbatches come one after the other, so that only one of them needs memory
  for its activations. Their losses are divided by the number of samples of the
  whole batch, so that a sample weighs the same however rows are cut, and the
  gradient is that of the batch at once but for the order of its sums.

  Args:
    network: as in `flow_loss`, like the others.
    params: parameters.
    batch: of rows that the microbatches divide.
    times: distribution of t.
    key: of the step.
    microbatches: how many.

  Returns:
    The gradient, and loss, samples, losses and samples by time bin, and where
    it has a weight the balance of experts.
  """
  tokens, condition = batch
  count = _samples(tokens, condition.sample_ids.shape[1])
  weight = network.model.balance_weight

  def objective(params, part):
    flow = flow_loss(network, params, part, times, key)
    loss = flow.loss.sum() / jnp.maximum(count, 1)
    by_time, of_time = flow.by_time
    values = {"loss": loss, "loss_by_time": by_time, "samples_by_time": of_time}
    if flow.balance is not None:
      values["balance"] = flow.balance / microbatches
      loss += weight * values["balance"]
    return loss, values

  gradient = jax.grad(objective, has_aux=True)
  if microbatches == 1:
    grads, values = gradient(params, batch)
  else:
    grads, values = _sum(
      lambda part: gradient(params, part), batch, microbatches
    )
  return grads, values | {"samples": count}


def _sum(gradient: Any, batch: Batch, microbatches: int) -> Any:
  """Sums what a function gives for each microbatch, one after the other."""

  def cut(x):
    # Microbatch m has rows m, m + M, ..., a share of those of every device.
    parts = x.reshape(-1, microbatches, *x.shape[1:])
    return jnp.moveaxis(parts, 1, 0)

  parts = jax.tree.map(cut, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, first))

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradient(part)), None

  return jax.lax.scan(add, zeros, parts)[0]


def _real(tokens: Tokens) -> jax.Array:
  """Whether a token is a patch of a sample, `bool[B, L]`."""
  return (tokens.kinds == PATCH) & (tokens.segments != 0)


def _samples(tokens: Tokens, samples: int) -> jax.Array:
  """Samples of a batch, `i32[]`; a segment without patches is none."""
  member = losses.members(tokens.segments, samples) & _real(tokens)[..., None]
  return member.any(axis=1).sum()
