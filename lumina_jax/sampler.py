"""The sampler: noise to patches, one jitted program per shape.

B rows, L tokens, N samples a row, S text tokens a row, P patch.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.flow import guidance, ode
from lumina_jax.flow.noise import token_noise
from lumina_jax.network import Network, Params
from lumina_jax.parallel.mesh import RULES
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token


class Request(NamedTuple):
  """What to sample, all traced: other values never recompile.

  Attributes:
    tokens: layout of the rows; the patches are not read.
    condition: text codes and `sample_ids` of the samples.
    negative: text codes to steer away from; None = no guidance at all.
    seeds: `u32[B, N]`; with a sample's id, a seed fixes its noise.
    guidance_scale: `f32[B, N]`.
    times: `f32[steps + 1]` grid from 0 to 1.
  """

  tokens: Tokens
  condition: Condition
  negative: Condition | None
  seeds: jax.Array
  guidance_scale: jax.Array
  times: jax.Array


@functools.partial(jax.jit, static_argnames=("network", "solver"))
def sample(
  params: Params, request: Request, *, network: Network, solver: ode.Tableau
) -> jax.Array:
  """Solves dx/dt = v(x, t) from noise to data.

  Args:
    params: of the network.
    request: what to sample.
    network: predicts the velocity.
    solver: one of `ode.SOLVERS`.

  Returns:
    `f32[B, L, P]` patches, zero on separators and padding.
  """
  with nn.logical_axis_rules(RULES):
    tokens, condition = request.tokens, request.condition
    x = _noise(request, network.model.patch_dim)
    condition = network.encode(params, condition)
    guided = request.negative is not None
    if guided:
      negative = network.encode(params, request.negative)
      # One batch for both branches, conditional rows first.
      tokens, condition = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]),
        (tokens, condition),
        (tokens, negative),
      )

    def velocity(x, t):
      at = condition._replace(time=jnp.full(condition.sample_ids.shape, t))
      return network.velocity(params, tokens._replace(patches=x), at)

    if guided:
      scale = per_token(request.guidance_scale, request.tokens.segments)
      velocity = guidance.classifier_free(velocity, scale[..., None])
    return ode.solve(velocity, x, request.times, solver)


def _noise(request: Request, patch_dim: int) -> jax.Array:
  def key(seed, sample_id):
    return jax.random.fold_in(jax.random.key(seed), sample_id)

  keys = jax.vmap(jax.vmap(key))(request.seeds, request.condition.sample_ids)
  tokens = request.tokens
  noise = token_noise(keys, tokens.segments, patch_dim)
  real = (tokens.kinds == PATCH) & (tokens.segments != 0)
  return jnp.where(real[..., None], noise, 0)
