"""Attention in chunks of queries: exact, in O(L + S) memory.

The whole score matrix never exists. Both passes loop over chunks of queries;
the backward pass recomputes scores and normalises them by lse (Rabe and Staats
2021; Dao et al. 2022, here without tiles over keys). Runs on any platform, at
any length; reverse-mode derivatives only.

B rows, M queries of a kv head, S keys, G kv heads, K head channels. Query heads
that share a kv head are folded into its queries.
"""

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp

from lumina_jax.attention.kernel import LOWEST, zero_without_key
from lumina_jax.attention.mask import mask

# Scores per chunk, over all rows and heads. 8 MB fit the caches of a CPU;
# accelerators prefer few, large products.
CPU_SCORES, SCORES = 2**21, 2**26
MIN_QUERIES = 128  # per kv head and chunk, since small products are slow

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Chunked:
  """A `Kernel` in plain JAX.

  Attributes:
    scores: scores per chunk, over all rows and heads.
    min_queries: fewest queries per kv head and chunk.
  """

  scores: int = SCORES
  min_queries: int = MIN_QUERIES

  def forward(self, q, k, v, q_segments, kv_segments):
    """See `Kernel.forward`."""

    def chunk(queries):
      scores = _scores(*queries, k, kv_segments)
      top = scores.max(axis=-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = weights.sum(axis=-1, keepdims=True)
      out = _einsum("BGMS,BGSK->BGMK", weights.astype(v.dtype), v) / total
      return out.astype(v.dtype), (top + jnp.log(total))[..., 0]

    queries, heads = _fold((q,), q_segments, k.shape[1])
    chunks = _split(queries, self._count(queries[0], k))
    out, lse = _join(jax.lax.map(chunk, chunks), queries[0].shape[2])
    return zero_without_key(*_unfold((out, lse), heads))

  def backward(self, q, k, v, q_segments, kv_segments, lse, shift, d_out):
    """See `Kernel.backward`."""

    def chunk(sums, queries):
      q, lse, shift, d_out, q_segments = queries
      p = jnp.exp(_scores(q, q_segments, k, kv_segments) - lse[..., None])
      ds = p * (_einsum("BGMK,BGSK->BGMS", d_out, v) - shift[..., None])
      ds = (ds * _scale(q)).astype(q.dtype)
      # CPUs are slow at a transposed M x S left operand, so dk and dv are
      # computed transposed.
      dk = _einsum("BGMK,BGMS->BGKS", q, ds)
      dv = _einsum("BGMK,BGMS->BGKS", d_out, p.astype(v.dtype))
      dq = _einsum("BGMS,BGSK->BGMK", ds, k).astype(q.dtype)
      return (sums[0] + dk, sums[1] + dv), (dq,)

    queries, heads = _fold((q, lse, shift, d_out), q_segments, k.shape[1])
    zero = jnp.zeros(k.mT.shape, jnp.float32)
    chunks = _split(queries, self._count(queries[0], k))
    sums, dq = jax.lax.scan(chunk, (zero, zero), chunks)
    (dq,) = _unfold(_join(dq, queries[0].shape[2]), heads)
    # Without the barrier XLA undoes the transposition.
    dk, dv = jax.lax.optimization_barrier(sums)
    return dq, dk.mT, dv.mT

  def _count(self, q, k) -> int:
    """The number of chunks."""
    rows_heads = q.shape[0] * q.shape[1]
    queries = max(self.min_queries, self.scores // (rows_heads * k.shape[2]))
    return -(-q.shape[2] // queries)


def _fold(arrays, q_segments, kv_heads: int):
  """`[B, H, L, ...]` -> `[B, G, M, ...]`, then segments `[B, 1, M]`; and H."""
  heads = arrays[0].shape[1]
  folded = tuple(
    einops.rearrange(x, "b (g r) l ... -> b g (r l) ...", g=kv_heads)
    for x in arrays
  )
  segments = jnp.tile(q_segments[:, None], heads // kv_heads)
  return (*folded, segments), heads


def _unfold(arrays, heads: int):
  """The inverse of `_fold`."""
  return tuple(
    einops.rearrange(x, "b g (r l) ... -> b (g r) l ...", r=heads // x.shape[1])
    for x in arrays
  )


def _scores(q, q_segments, k, kv_segments):
  """`f32[B, G, M, S]`; segments of queries are `[B, 1, M]`."""
  scores = _einsum("BGMK,BGSK->BGMS", q, k) * _scale(q)
  allowed = mask(q_segments[:, 0], kv_segments)
  return jnp.where(allowed[:, None], scores, LOWEST)


def _scale(q) -> float:
  return q.shape[-1] ** -0.5


def _split(arrays, count: int):
  """`[B, G, M, ...]` -> chunks `[count, B, G, M / count, ...]`.

  A chunk takes every count-th query, so that each device splits its own part of
  a sharded sequence. Padding has segment 0.
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
