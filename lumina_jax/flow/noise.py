"""Random numbers that depend on a sample, not on its place in a batch.

The noise of a token depends only on the key of its sample and on its index
within the sample. Padding, packing, batch size and process count do not change
it.

B rows, L tokens, N samples a row, P patch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, sample_ids: jax.Array) -> jax.Array:
  """One key per sample: `i32[B, N]` -> `key[B, N]`."""
  return jax.vmap(jax.vmap(lambda i: jax.random.fold_in(key, i)))(sample_ids)


def fold_in_time(keys: jax.Array, t: jax.Array) -> jax.Array:
  """Folds times into keys: `key[*T]`, `f32[*T]` or `f32[]` -> `key[*T]`.

  The result depends only on the key and on the bits of the time, so splitting a
  solve into segments leaves its noise unchanged.
  """
  bits = jax.lax.bitcast_convert_type(jnp.float32(t), jnp.uint32)
  bits = jnp.broadcast_to(bits, keys.shape)
  flat = jax.vmap(jax.random.fold_in)(keys.reshape(-1), bits.reshape(-1))
  return flat.reshape(keys.shape)


def normal(keys: jax.Array, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """Makes `Samples.normal` for states like x.

  Use the keys for nothing else, such as the noise at t = 0.

  Args:
    keys: `key[*T]`, one per sample; `key[]` if all of x is one sample.
    x: `[*T, ...]`.

  Returns:
    A function from times `f32[]` or `f32[*T]` to standard normal numbers of x's
    shape, in float32 or x's wider dtype.
  """
  shape, dtype = x.shape[keys.ndim :], jnp.promote_types(x.dtype, "float32")

  def at(t: jax.Array) -> jax.Array:
    sample = lambda key: jax.random.normal(key, shape, dtype)  # noqa: E731
    return jax.vmap(sample)(fold_in_time(keys, t).reshape(-1)).reshape(x.shape)

  return at


def token_noise(
  keys: jax.Array, segments: jax.Array, patch_dim: int
) -> jax.Array:
  """Standard normal noise `f32[B, L, P]` for every token.

  Args:
    keys: `key[B, N]`, from `sample_keys`.
    segments: `i32[B, L]`, the sample of each token, from 1; 0 = padding.
    patch_dim: P.
  """

  def token(keys_N, slot, index):
    key = jax.random.fold_in(keys_N[slot], index)
    return jax.random.normal(key, (patch_dim,))

  row = jax.vmap(token, in_axes=(None, 0, 0))
  slots = jnp.maximum(segments - 1, 0)
  return jax.vmap(row)(keys, slots, index_in_sample(segments))


def index_in_sample(segments: jax.Array) -> jax.Array:
  """`i32[B, L]`: 0, 1, 2, ... within each run of equal segments."""
  place = jnp.arange(segments.shape[1])
  before = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  start = jnp.where(segments != before, place, 0)
  return place - jax.lax.cummax(start, axis=1)
