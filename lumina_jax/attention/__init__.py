"""Bidirectional attention over segments: one rule, one function."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp

from lumina_jax.attention.chunked import chunked
from lumina_jax.attention.mask import has_key


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
) -> jax.Array:
  """Attention among tokens of equal, non-zero segment.

  Args:
    q: `[B, L, H, K]` queries; head h reads kv head h // (H / G).
    k: `[B, S, G, K]` keys, G divides H.
    v: `[B, S, G, K]` values.
    q_segments: `i32[B, L]`.
    kv_segments: `i32[B, S]`.

  Returns:
    `[B, L, H, K]`; zeros, without gradient, where a query has no key.
  """
  group = q.shape[2] // k.shape[2]
  q = einops.rearrange(q, "b l (g r) k -> b g (l r) k", r=group)
  k, v = (einops.rearrange(x, "b s g k -> b g s k") for x in (k, v))
  out = chunked(q, k, v, jnp.repeat(q_segments, group, axis=1), kv_segments)
  out = einops.rearrange(out, "b g (l r) k -> b l (g r) k", r=group)
  return jnp.where(has_key(q_segments, kv_segments)[..., None, None], out, 0)
