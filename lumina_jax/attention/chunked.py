"""Attention to all keys, a few queries at a time: exact, O(L + S) memory.

The whole score matrix never exists. Both passes walk over chunks of queries;
the backward pass computes scores anew and normalises them by lse, the logarithm
of the sum of their exponentials (Rabe and Staats 2021; Dao et al. 2022, here
without tiles over keys). Any platform, any length; derivatives in reverse only.

B rows, M queries, S keys, G kv heads, K head channels. Query heads that share a
kv head are but more queries of it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lumina_jax.attention.mask import mask

# Scores of a chunk, over all rows and heads. 8 MB of them stay in the caches
# of a CPU; accelerators would rather have few and large products.
CPU_SCORES, SCORES = 2**21, 2**26
LEAST = 128  # Queries of a kv head in a chunk: no products of slivers.
LOWEST = jnp.finfo(jnp.float32).min

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def chunked(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v among equal segments, softmax in float32.

  Args:
    q: `[B, G, M, K]`.
    k: `[B, G, S, K]`.
    v: `[B, G, S, K]`.
    q_segments: `i32[B, M]`.
    kv_segments: `i32[B, S]`.

  Returns:
    `[B, G, M, K]` in v's dtype; the mean of v where a query has no key.
  """
  return _forward(q, k, v, q_segments, kv_segments)[0]


def _forward(q, k, v, q_segments, kv_segments):
  """Returns out `[B, G, M, K]` and lse `f32[B, G, M]`."""

  def chunk(queries):
    scores = _scores(*queries, k, kv_segments)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = _einsum("BGMS,BGSK->BGMK", weights.astype(v.dtype), v) / total
    return out.astype(v.dtype), (top + jnp.log(total))[..., 0]

  chunks = _split((q, q_segments[:, None]), _count(q, k))
  return _join(jax.lax.map(chunk, chunks), q.shape[2])


def _saving(*inputs):
  out, lse = _forward(*inputs)
  return out, (*inputs, out, lse)


def _backward(saved, d_out):
  """Cotangents of q, k and v.

  dv = p^T do and ds = p (do v^T - sum(do out)), with p = exp(s - lse).
  """
  q, k, v, q_segments, kv_segments, out, lse = saved
  shift = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)

  def chunk(sums, queries):
    q, q_segments, lse, d_out, shift = queries
    p = jnp.exp(_scores(q, q_segments, k, kv_segments) - lse[..., None])
    ds = p * (_einsum("BGMK,BGSK->BGMS", d_out, v) - shift[..., None])
    ds = (ds * _scale(q)).astype(q.dtype)
    # Transposed on purpose: a CPU is slow at M x S from the left, transposed.
    dk = _einsum("BGMK,BGMS->BGKS", q, ds)
    dv = _einsum("BGMK,BGMS->BGKS", d_out, p.astype(v.dtype))
    dq = _einsum("BGMS,BGSK->BGMK", ds, k).astype(q.dtype)
    return (sums[0] + dk, sums[1] + dv), (dq,)

  queries = q, q_segments[:, None], lse, d_out, shift
  zero = jnp.zeros(k.mT.shape, jnp.float32)
  sums, dq = jax.lax.scan(chunk, (zero, zero), _split(queries, _count(q, k)))
  (dq,) = _join(dq, q.shape[2])
  dk, dv = jax.lax.optimization_barrier(sums)  # Or XLA undoes the transposing.
  return dq, dk.mT.astype(k.dtype), dv.mT.astype(v.dtype), None, None


chunked.defvjp(_saving, _backward)


def _scores(q, q_segments, k, kv_segments):
  """`f32[B, G, M, S]`; segments of queries are `[B, 1, M]`."""
  scores = _einsum("BGMK,BGSK->BGMS", q, k) * _scale(q)
  allowed = mask(q_segments[:, 0], kv_segments)
  return jnp.where(allowed[:, None], scores, LOWEST)


def _scale(q) -> float:
  return q.shape[-1] ** -0.5


def _count(q, k) -> int:
  """Number of chunks."""
  rows_heads = q.shape[0] * q.shape[1]
  budget = CPU_SCORES if jax.default_backend() == "cpu" else SCORES
  queries = max(LEAST, budget // (rows_heads * k.shape[2]))
  return -(-q.shape[2] // queries)


def _split(arrays, count: int):
  """`[B, G, M, ...]` -> chunks `[count, B, G, M / count, ...]`.

  A chunk takes every count-th query: a sequence that lies on many devices is
  cut on each of them. What is padded to a whole number is of segment 0.
  """

  def split(x):
    padding = [(0, 0)] * x.ndim
    padding[2] = 0, -x.shape[2] % count
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:2], -1, count, *x.shape[3:])
    return jnp.moveaxis(x, 3, 0)

  return jax.tree.map(split, arrays)


def _join(chunks, length: int):
  """The inverse of `_split`."""

  def join(x):
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length]

  return jax.tree.map(join, chunks)
