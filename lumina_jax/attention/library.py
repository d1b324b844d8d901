"""Attention that JAX has: XLA's with a whole score matrix, and NVIDIA's cuDNN.

Both are differentiated by JAX as they are, so there is no lse between their
passes: no ring over them, and nothing of theirs is saved by name.

B rows, L queries, S keys, H heads, G kv heads, K head channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumina_jax.attention.mask import has_key, mask

LARGEST_HEAD = 128  # Channels that cuDNN takes on every GPU since Ampere.


def dense(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
) -> jax.Array:
  """All scores at once: O(L S) memory. Arguments of `Kernel.forward`."""
  allowed = mask(q_segments, kv_segments)[:, None]
  out = _attend(q, k, v, mask=allowed, implementation="xla")
  return _with_key(out, q_segments, kv_segments)


def cudnn(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
) -> jax.Array:
  """cuDNN's fused kernel, for rows of one sample whose padding comes last."""
  lengths = [
    jnp.maximum((segments != 0).sum(axis=1, dtype=jnp.int32), 1)
    for segments in (q_segments, kv_segments)
  ]  # An empty row attends to padding, rather than to nothing: no NaN.
  out = _attend(
    q,
    k,
    v,
    query_seq_lengths=lengths[0],
    key_value_seq_lengths=lengths[1],
    implementation="cudnn",
  )
  some = (kv_segments != 0).any(axis=1, keepdims=True)
  found = (q_segments != 0) & some
  return jnp.where(found[:, None, :, None], out, 0)


def refuses_cudnn(
  platform: str, head_dim: int, dtype: jnp.dtype, packed: bool
) -> str:
  """Why cuDNN cannot serve; "" if it can."""
  if platform not in ("gpu", "cuda"):
    return f"cuDNN runs on NVIDIA GPUs, not on {platform!r}"
  if packed:
    return "cuDNN knows lengths and no segments: rows of several samples"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"cuDNN computes in bfloat16 or float16, not {jnp.dtype(dtype).name}"
  if head_dim % 8 or head_dim > LARGEST_HEAD:
    return f"cuDNN takes heads of 8, 16 ... {LARGEST_HEAD}, not of {head_dim}"
  return ""


def _attend(q, k, v, **how):
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, **how), 1, 2)


def _with_key(out, q_segments, kv_segments):
  found = has_key(q_segments, kv_segments)
  return jnp.where(found[:, None, :, None], out, 0)
