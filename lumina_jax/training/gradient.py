"""The loss of a batch and its gradient, at once or in microbatches.

B batch, L tokens, N samples a row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow import loss as losses
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.noise import sample_keys, token_noise
from lumina_jax.model.network import Network, Params
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token

Batch = tuple[Tokens, Condition]

TIME_BINS = 10  # Bins of the loss by time.


class FlowLoss(NamedTuple):
  """Losses of the samples of a batch.

  Attributes:
    loss: `f32[B, N]`, loss of each sample; zero where there is no sample.
    exists: `bool[B, N]`, whether there is a sample.
    times: `f32[B, N]`, time t of each sample.
    balance: `f32[]`, load-balancing loss of the experts; None without a weight.
  """

  loss: jax.Array
  exists: jax.Array
  times: jax.Array
  balance: jax.Array | None

  @property
  def mean(self) -> jax.Array:
    """`f32[]`, mean over samples."""
    return self.loss.sum() / jnp.maximum(self.exists.sum(), 1)

  @property
  def by_time(self) -> tuple[jax.Array, jax.Array]:
    """Sum of losses and number of samples of each time bin, `f32[10]` each."""
    bins = jnp.minimum((self.times * TIME_BINS).astype(int), TIME_BINS - 1)
    inside = jax.nn.one_hot(bins, TIME_BINS) * self.exists[..., None]
    loss = jnp.where(self.exists, self.loss, 0)
    return jnp.einsum("bn,bnk->k", loss, inside), inside.sum(axis=(0, 1))


def flow_loss(
  network: Network,
  params: Params,
  batch: Batch,
  times: TimeDistribution,
  key: jax.Array,
) -> FlowLoss:
  """Flow-matching losses of a batch.

  Args:
    network: the network; its objective defines the target.
    params: its parameters.
    batch: tokens of data, and their condition with tokenized prompts.
    times: distribution of t; the objective may keep t away from the ends.
    key: together with a sample's id, determines its time and noise.
  """
  tokens, condition = batch
  keys = sample_keys(key, condition.sample_ids)
  keys_time, keys_noise = (
    jax.vmap(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i)))(keys)
    for i in range(2)
  )
  objective, samples = network.objective, keys.shape[1]
  x1 = tokens.patches
  is_patch = _is_patch(tokens)
  sizes = losses.token_counts(tokens.segments, samples)
  t = objective.training_times(times.sample(keys_time, sizes))
  of_token = per_token(t[..., None], tokens.segments)
  noise = token_noise(keys_noise, tokens.segments, x1.shape[-1])
  x0 = jnp.where(is_patch[..., None], noise, 0)
  x_t = objective.interpolate(x0, x1, of_token)
  condition = network.encode(params, condition._replace(time=t))
  inputs = params, tokens._replace(patches=x_t), condition
  if network.model.balance_weight:
    predicted, balance = network.prediction_and_balance(*inputs)
  else:
    predicted, balance = network.prediction(*inputs), None
  error = objective.error(predicted, x0, x1, of_token)
  loss, exists = losses.per_sample_loss(
    error, is_patch, tokens.segments, samples
  )
  return FlowLoss(loss, exists, t, balance)


def flow_gradient(
  network: Network,
  params: Params,
  batch: Batch,
  times: TimeDistribution,
  key: jax.Array,
  microbatches: int = 1,
) -> tuple[Params, dict[str, jax.Array]]:
  """Gradient of the mean loss over the samples of a batch, and metrics.

  Microbatches run one after the other, so that only one of them needs memory
  for activations. Their losses are divided by the number of samples of the
  whole batch: the gradient equals that of the batch at once up to rounding,
  however samples are spread over microbatches.

  Args:
    network: as in `flow_loss`.
    params: as in `flow_loss`.
    batch: as in `flow_loss`; its rows divide into microbatches.
    times: as in `flow_loss`.
    key: key of the step.
    microbatches: number of microbatches.

  Returns:
    The gradient, and metrics: loss, samples, losses and samples by time bin,
    and the load-balancing loss if it has a weight.
  """
  tokens, condition = batch
  count = _count_samples(tokens, condition.sample_ids.shape[1])
  weight = network.model.balance_weight

  def objective(params, microbatch):
    flow = flow_loss(network, params, microbatch, times, key)
    loss = flow.loss.sum() / jnp.maximum(count, 1)
    sums, counts = flow.by_time
    metrics = {"loss": loss, "loss_by_time": sums, "samples_by_time": counts}
    if flow.balance is not None:
      metrics["balance"] = flow.balance / microbatches
      loss += weight * metrics["balance"]
    return loss, metrics

  gradient = jax.grad(objective, has_aux=True)
  if microbatches == 1:
    grads, metrics = gradient(params, batch)
  else:
    grads, metrics = _accumulate(
      lambda microbatch: gradient(params, microbatch), batch, microbatches
    )
  return grads, metrics | {"samples": count}


def _accumulate(function: Any, batch: Batch, microbatches: int) -> Any:
  """Sums the outputs of a function over microbatches, one after the other."""

  def split(x):
    # Microbatch m has rows m, m + M, ..., a share of those of every device.
    parts = x.reshape(-1, microbatches, *x.shape[1:])
    return jnp.moveaxis(parts, 1, 0)

  parts = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first))

  def add(total, microbatch):
    return jax.tree.map(jnp.add, total, function(microbatch)), None

  return jax.lax.scan(add, zeros, parts)[0]


def _is_patch(tokens: Tokens) -> jax.Array:
  """`bool[B, L]`, whether a token is a patch of a sample."""
  return (tokens.kinds == PATCH) & (tokens.segments != 0)


def _count_samples(tokens: Tokens, samples: int) -> jax.Array:
  """`i32[]`, number of samples; a segment without patches is none."""
  member = losses.members(tokens.segments, samples)
  member &= _is_patch(tokens)[..., None]
  return member.any(axis=1).sum()
