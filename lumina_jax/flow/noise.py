"""Random numbers that belong to a sample, not to its place in a batch.

A token's noise depends on the key of its sample and on its index within the
sample only; so padding, packing, batch size and process count change nothing.

B rows, L tokens, N samples a row, P patch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, sample_ids: jax.Array) -> jax.Array:
  """One key per sample: `i32[B, N]` -> `key[B, N]`."""
  return jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))(sample_ids)


def token_noise(
  keys: jax.Array, segments: jax.Array, patch_dim: int
) -> jax.Array:
  """Standard normal noise `f32[B, L, P]` for every token.

  Args:
    keys: `key[B, N]`, from `sample_keys`.
    segments: `i32[B, L]`; token of segment n belongs to sample n - 1.
    patch_dim: P.
  """

  def of_token(keys_N, slot, index):
    key = jax.random.fold_in(keys_N[slot], index)
    return jax.random.normal(key, (patch_dim,))

  of_row = jax.vmap(of_token, in_axes=(None, 0, 0))
  slots = jnp.maximum(segments - 1, 0)
  return jax.vmap(of_row)(keys, slots, index_in_sample(segments))


def index_in_sample(segments: jax.Array) -> jax.Array:
  """`i32[B, L]`: 0, 1, 2, ... within each run of equal segments."""
  place = jnp.arange(segments.shape[1])
  before = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  start = jnp.where(segments != before, place, 0)
  return place - jax.lax.cummax(start, axis=1)
