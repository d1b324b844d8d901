"""Bidirectional attention over segments: one rule, one function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumina_jax.attention.dense import dense
from lumina_jax.attention.mask import has_key, mask


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
) -> jax.Array:
  """Attention among tokens of equal, non-zero segment.

  Args:
    q: `[B, L, H, K]` queries.
    k: `[B, S, G, K]` keys, G divides H.
    v: `[B, S, G, K]` values.
    q_segments: `i32[B, L]`.
    kv_segments: `i32[B, S]`.

  Returns:
    `[B, L, H, K]`; zeros, without gradient, where a query has no key.
  """
  out = dense(q, k, v, mask(q_segments, kv_segments))
  return jnp.where(has_key(q_segments, kv_segments)[..., None, None], out, 0)
