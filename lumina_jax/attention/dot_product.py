"""`jax.nn.dot_product_attention`: XLA's whole score matrix, and cuDNN's kernel.

JAX differentiates both as they are and returns no lse. So neither can serve a
ring, and `remat` cannot save their outputs by name.

B rows, L queries, S keys, H heads, G kv heads, K head channels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lumina_jax.attention.mask import has_key, mask

LARGEST_HEAD = 128  # channels that cuDNN supports on every GPU since Ampere


def dense(q, k, v, q_segments, kv_segments) -> jax.Array:
  """All scores at once, in O(L S) memory. Arguments as in `Kernel.forward`."""
  allowed = mask(q_segments, kv_segments)[:, None]
  out = _attend(q, k, v, mask=allowed, implementation="xla")
  valid = has_key(q_segments, kv_segments)
  return jnp.where(valid[:, None, :, None], out, 0)


def cudnn(q, k, v, q_segments, kv_segments) -> jax.Array:
  """cuDNN's fused kernel, for rows of one sample with padding last.

  Arguments as in `Kernel.forward`.
  """
  # At least 1: an empty row attends to padding, since no key would give NaN.
  lengths = [
    jnp.maximum((segments != 0).sum(axis=1, dtype=jnp.int32), 1)
    for segments in (q_segments, kv_segments)
  ]
  out = _attend(
    q,
    k,
    v,
    query_seq_lengths=lengths[0],
    key_value_seq_lengths=lengths[1],
    implementation="cudnn",
  )
  any_key = (kv_segments != 0).any(axis=1, keepdims=True)
  valid = (q_segments != 0) & any_key
  return jnp.where(valid[:, None, :, None], out, 0)


def cudnn_unsupported(
  platform: str, head_dim: int, dtype: jnp.dtype, packed: bool
) -> str:
  """Returns why cuDNN cannot be used, or ""."""
  if platform not in ("gpu", "cuda"):
    return f"cuDNN runs on NVIDIA GPUs, not on {platform!r}"
  if packed:
    return "cuDNN takes lengths, not segments: no rows of several samples"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"cuDNN computes in bfloat16 or float16, not {jnp.dtype(dtype).name}"
  if head_dim % 8 or head_dim > LARGEST_HEAD:
    return f"cuDNN takes heads of 8, 16 ... {LARGEST_HEAD}, not of {head_dim}"
  return ""


def _attend(
  q: jax.Array, k: jax.Array, v: jax.Array, **options: Any
) -> jax.Array:
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, **options), 1, 2)
