"""Attention with the whole score matrix: exact, O(L S) memory, any platform.

B rows, L queries, S keys, H query heads, G kv heads, K head channels.
"""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp


def dense(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v, softmax in float32.

  Args:
    q: `[B, L, H, K]`.
    k: `[B, S, G, K]`, G divides H; query head h reads kv head h // (H / G).
    v: `[B, S, G, K]`.
    mask: `bool[B, L, S]`.

  Returns:
    `[B, L, H, K]` in v's dtype; the mean of v where a query has no key.
  """
  group = q.shape[2] // k.shape[2]
  q_BLGRK = einops.rearrange(q, "b l (g r) k -> b l g r k", r=group)
  scores = jnp.einsum(
    "blgrk,bsgk->bgrls", q_BLGRK, k, preferred_element_type=jnp.float32
  )
  scores = scores * q.shape[-1] ** -0.5
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum("bgrls,bsgk->blgrk", weights, v)
  return einops.rearrange(out, "b l g r k -> b l (g r) k")
