"""The mask rule: a token attends where segments are equal and not 0.

One rule serves self-attention, cross-attention (tokens and their text share a
segment), packing and padding.
"""

import jax


def mask(q_segments: jax.Array, kv_segments: jax.Array) -> jax.Array:
  """`i32[B, L]`, `i32[B, S]` -> `bool[B, L, S]`, True = attend."""
  q, kv = q_segments[:, :, None], kv_segments[:, None, :]
  return (q == kv) & (q != 0)


def has_key(q_segments: jax.Array, kv_segments: jax.Array) -> jax.Array:
  """`bool[B, L]`: whether a query attends to at least one key.

  A query without a key yields zeros and passes no gradient. Kernels differ
  there, so `attend` applies this rule outside of them.
  """
  return mask(q_segments, kv_segments).any(axis=-1)
