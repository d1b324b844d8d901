"""What a kernel is: attention that can be taken apart and put together again.

A ring computes attention to a part of the keys at a time, so a kernel says
beside its output how much weight the softmax gave to these keys (lse), and its
backward pass works from the sums over all keys. Everything around kernels, the
ring and the saving of outputs, is then written once.

B rows, L queries, S keys, H heads, G kv heads, K head channels. Head h reads kv
head h // (H / G).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

# Scores of pairs that do not attend to each other: finite, so that a kernel
# may subtract them from one another.
LOWEST = jnp.finfo(jnp.float32).min


class Kernel(Protocol):
  """Attention among equal segments, forwards and backwards; hashable."""

  def forward(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    kv_segments: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(K)) v, softmax in float32.

    Args:
      q: `[B, H, L, K]`.
      k: `[B, G, S, K]`.
      v: `[B, G, S, K]`.
      q_segments: `i32[B, L]`, 0 = padding.
      kv_segments: `i32[B, S]`.

    Returns:
      out `[B, H, L, K]` in v's dtype and lse `f32[B, H, L]`, the logarithm of
      the sum of exponentials of a query's scores; 0 and -inf without a key.
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
    """Cotangents of q, k and v, in any type of numbers.

    With p = exp(q k^T / sqrt(K) - lse) where segments are equal, else 0:
    dv = p^T do, ds = p (do v^T - shift), dq = ds k / sqrt(K),
    dk = ds^T q / sqrt(K) (Dao et al. 2022, algorithm 4).

    Args:
      q: as in `forward`; so are k, v and the segments.
      k: these keys may be a part of all.
      v: likewise.
      q_segments: `i32[B, L]`.
      kv_segments: `i32[B, S]`.
      lse: `f32[B, H, L]` over all keys; +inf where a query has none.
      shift: `f32[B, H, L]`, sum(do out) over channels.
      d_out: `[B, H, L, K]`, the cotangent of the output.
    """


def without_key(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Zeros and -inf for the queries whose every score is that of masked pairs.

  Kernels give them the mean of v. Their lse tells them apart, which takes a
  look at L numbers in place of L x S segments.
  """
  # Scores of kernels that mask with less than LOWEST lie above half of it.
  found = lse > LOWEST / 4
  return jnp.where(found[..., None], out, 0), jnp.where(found, lse, -jnp.inf)


def merge(
  a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Attention to two sets of keys from attention to each of them.

  out = (e^lse_a a + e^lse_b b) / (e^lse_a + e^lse_b), in float32.

  Args:
    a: out `[B, H, L, K]` and lse `f32[B, H, L]`, -inf where there is no key.
    b: likewise.
  """
  top = jnp.maximum(a[1], b[1])
  top = jnp.where(jnp.isneginf(top), 0, top)  # Or -inf - -inf is no number.
  weights = [jnp.exp(lse - top) for _, lse in (a, b)]
  total = weights[0] + weights[1]
  share = [w / jnp.where(total == 0, 1, total) for w in weights]
  out = sum(
    w[..., None] * x.astype(jnp.float32)
    for w, (x, _) in zip(share, (a, b), strict=True)
  )
  return out, top + jnp.log(total)
