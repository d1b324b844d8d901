"""The one mask rule: a token attends where segments are equal and not 0.

It serves self-attention, cross-attention (the segment of a token and that of a
text token name the same sample), packing and padding.
"""

from __future__ import annotations

import jax


def mask(q_segments: jax.Array, kv_segments: jax.Array) -> jax.Array:
  """`i32[B, L]`, `i32[B, S]` -> `bool[B, L, S]`, True where attended."""
  q, kv = q_segments[:, :, None], kv_segments[:, None, :]
  return (q == kv) & (q != 0)


def has_key(q_segments: jax.Array, kv_segments: jax.Array) -> jax.Array:
  """`bool[B, L]`: whether a query attends to any key at all.

  A query without a key shall yield zeros and pass no gradient; kernels
  disagree there, so the rule is applied once, outside of them.
  """
  return mask(q_segments, kv_segments).any(axis=-1)
