"""The kernel protocol: attention in two passes that can be merged over keys.

A ring attends to a part of the keys at a time. Therefore a kernel returns the
log of the softmax's sum (lse) with its output, and its backward pass takes lse
and sums over all keys. The ring and rematerialisation work with any kernel.

B rows, L queries, S keys, H heads, G kv heads, K head channels. Head h reads kv
head h // (H / G).
"""

from typing import Protocol

import jax
import jax.numpy as jnp

# Score of masked pairs. Finite, so that differences of two are finite too.
LOWEST = jnp.finfo(jnp.float32).min


class Kernel(Protocol):
  """Attention among equal segments, forward and backward. Hashable."""

  def forward(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    kv_segments: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(K)) v, with the softmax in float32.

    Args:
      q: `[B, H, L, K]`.
      k: `[B, G, S, K]`.
      v: `[B, G, S, K]`.
      q_segments: `i32[B, L]`, 0 = padding.
      kv_segments: `i32[B, S]`, 0 = padding.

    Returns:
      out `[B, H, L, K]` in v's dtype and lse `f32[B, H, L]`, the log of the sum
      of exponentials of a query's scores; 0 and -inf for a query without a key.
    """

  def backward(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    kv_segments: jax.Array,
    lse: jax.Array,
    shift: jax.Array,
    d_out: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of q, k and v, in any floating dtype.

    With p = exp(q k^T / sqrt(K) - lse) where segments are equal, else 0:
    dv = p^T do, ds = p (do v^T - shift), dq = ds k / sqrt(K),
    dk = ds^T q / sqrt(K) (Dao et al. 2022, algorithm 4).

    Args:
      q: `[B, H, L, K]`.
      k: `[B, G, S, K]`; may be a part of all keys.
      v: `[B, G, S, K]`, the values of these keys.
      q_segments: `i32[B, L]`.
      kv_segments: `i32[B, S]`.
      lse: `f32[B, H, L]` over all keys; +inf for a query without a key.
      shift: `f32[B, H, L]`, sum(do out) over channels.
      d_out: `[B, H, L, K]`, the cotangent of the output.
    """


def zero_without_key(
  out: jax.Array, lse: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sets out to 0 and lse to -inf where a query has no key.

  Kernels return the mean of v there, with the lse of masked scores. Reading lse
  takes L comparisons, where segments would take L x S.
  """
  # Scores of kernels that mask with less than LOWEST lie above half of it.
  has_key = lse > LOWEST / 4
  return jnp.where(has_key[..., None], out, 0), jnp.where(
    has_key, lse, -jnp.inf
  )


def merge(
  a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Merges attention to two sets of keys into attention to their union.

  out = (e^lse_a a + e^lse_b b) / (e^lse_a + e^lse_b), in float32.

  Args:
    a: out `[B, H, L, K]` and lse `f32[B, H, L]`, -inf without a key.
    b: out and lse of the other keys.
  """
  top = jnp.maximum(a[1], b[1])
  top = jnp.where(jnp.isneginf(top), 0, top)  # -inf - -inf is NaN.
  weights = [jnp.exp(lse - top) for _, lse in (a, b)]
  total = weights[0] + weights[1]
  share = [w / jnp.where(total == 0, 1, total) for w in weights]
  out = sum(
    w[..., None] * x.astype(jnp.float32)
    for w, (x, _) in zip(share, (a, b), strict=True)
  )
  return out, top + jnp.log(total)
