"""Random numbers that belong to a sample, not to its place in a batch.

A token's noise depends on the key of its sample and on its index within the
sample only; so padding, packing, batch size and process count change nothing.

B rows, L tokens, N samples a row, P patch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, sample_ids: jax.Array) -> jax.Array:
  """One key per sample: `i32[B, N]` -> `key[B, N]`."""
  return jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))(sample_ids)


def at_time(keys: jax.Array, t: jax.Array) -> jax.Array:
  """Keys of their own for every time: `key[*T]`, `f32[*T]` -> `key[*T]`.

  They depend on the key and on the bits of the time only, so that a path of
  noise is the same however the solve along it is cut. One time serves all keys.
  """
  bits = jax.lax.bitcast_convert_type(jnp.float32(t), jnp.uint32)
  bits = jnp.broadcast_to(bits, keys.shape)
  flat = jax.vmap(jax.random.fold_in)(keys.reshape(-1), bits.reshape(-1))
  return flat.reshape(keys.shape)


def normal(keys: jax.Array, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """`Samples.normal` of a state x `[*T, ...]`, from one `key[*T]` a sample.

  With one `key[]`, all of x is one sample. What comes back takes times `f32[]`
  or `f32[*T]` and returns f32 (f64 for such x) numbers of x's shape. Draw
  nothing else, such as x at t = 0, from the same keys.
  """
  of_sample, dtype = x.shape[keys.ndim :], jnp.promote_types(x.dtype, "float32")

  def of_time(t: jax.Array) -> jax.Array:
    draw = lambda key: jax.random.normal(key, of_sample, dtype)  # noqa: E731
    return jax.vmap(draw)(at_time(keys, t).reshape(-1)).reshape(x.shape)

  return of_time


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
