"""Splash attention: JAX's Pallas kernel for TPUs, whose tiles stay in VMEM.

JAX's public wrapper hides lse from differentiation, so this module calls the
private passes below it. It uses the unfused backward pass. The fused one stores
partial sums of dq for each block of keys: 16 GiB a chip at 131,072 tokens of 32
heads over 8 chips, where the unfused one takes 0.64 GiB.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as pallas,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as mask_info,
)

from lumina_jax.attention.kernel import zero_without_key

LANES = 128
LARGEST_HEAD = 256  # channels; tiles of larger heads do not fit VMEM
# Segments of padding. They differ, since equal segments attend.
Q_PADDING, KV_PADDING = -1, -2

# Tiles by a substring of the device kind. A tile of n queries computes n
# operations for each byte of keys and values that it reads, and 1.5 n in the
# backward pass; a tile of n keys computes 2 n for each byte of queries and
# cotangents. These numbers must exceed the operations that the chip computes
# while it reads a byte: 240 on v5e, 166 on v5p, 560 on v6e, 313 on v7x.
# Compiled for all four; not timed yet.
DEFAULT = (512, 1024), (512, 512)
TILES = (("v6", ((1024, 1024), (512, 512))),)

_ALL = mask_info.MaskInfo(*[None] * len(mask_info.MaskInfo._fields))
_LAYOUT = pallas.QKVLayout.HEAD_DIM_MINOR
_COMMON = dict(
  is_mqa=False,
  mask_value=pallas.DEFAULT_MASK_VALUE,
  attn_logits_soft_cap=None,
  mask_function=None,
)


@dataclasses.dataclass(frozen=True)
class Splash:
  """A `Kernel` for TPUs.

  Attributes:
    forward_blocks: largest tile of the forward pass, (queries, keys); multiples
      of 128.
    backward_blocks: largest tile of the backward pass, (queries, keys).
    interpret: runs the kernel's body as plain JAX, slowly, on any platform.
  """

  forward_blocks: tuple[int, int] = DEFAULT[0]
  backward_blocks: tuple[int, int] = DEFAULT[1]
  interpret: bool = False

  def forward(self, q, k, v, q_segments, kv_segments):
    """See `Kernel.forward`."""
    bq, bkv = _tile(self.forward_blocks, q, k)
    length = q.shape[2]
    segments = _segments(q_segments, kv_segments, bq, bkv)
    q, (k, v) = _pad(_scaled(q), bq), (_pad(x, bkv) for x in (k, v))

    def one_row(q, k, v, segments):
      out, (lse,) = pallas._splash_attention_forward(
        _ALL,
        q,
        k,
        v,
        segments,
        None,
        block_sizes=pallas.BlockSizes(block_q=bq, block_kv=bkv),
        residual_checkpoint_name=None,
        save_residuals=True,
        interpret=self.interpret,
        **_COMMON,
      )
      return out, lse

    out, lse = jax.vmap(one_row)(q, k, v, segments)
    return zero_without_key(
      out[:, :, :length].astype(v.dtype), lse[:, :, :length]
    )

  def backward(self, q, k, v, q_segments, kv_segments, lse, shift, d_out):
    """See `Kernel.backward`."""
    bq, bkv = _tile(self.backward_blocks, q, k)
    length, keys = q.shape[2], k.shape[2]
    segments = _segments(q_segments, kv_segments, bq, bkv)
    queries = (_scaled(q), lse, shift, d_out.astype(q.dtype))
    queries = tuple(_pad(x, bq) for x in queries)
    k, v = (_pad(x, bkv) for x in (k, v))
    common = _COMMON | dict(
      bq=bq,
      bkv=bkv,
      mask_info=_ALL,
      q_layout=_LAYOUT,
      k_layout=_LAYOUT,
      v_layout=_LAYOUT,
      interpret=self.interpret,
    )

    def one_row(q, lse, shift, d_out, k, v, segments):
      inputs = q, k, v, segments, None, lse, d_out, shift
      _, dk, dv = pallas._splash_attention_bwd_dkv(
        *inputs, bkv_compute=bkv, use_fused_bwd_kernel=False, **common
      )
      return pallas._splash_attention_bwd_dq(*inputs, **common), dk, dv

    dq, dk, dv = jax.vmap(one_row)(*queries, k, v, segments)
    # The kernel received scaled queries: dk is complete, dq needs the scale.
    dq = dq[:, :, :length].astype(jnp.float32) * q.shape[-1] ** -0.5
    return dq, dk[:, :, :keys], dv[:, :, :keys]


def unsupported(platform: str, head_dim: int) -> str:
  """Returns why splash cannot be used, or ""."""
  if platform != "tpu":
    return f"splash runs on TPUs, not on {platform!r}"
  if head_dim > LARGEST_HEAD:
    return f"splash takes heads of {LARGEST_HEAD} channels, not {head_dim}"
  return ""


def blocks(kind: str, head_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Tiles of both passes for a kind of TPU; see `Splash`."""
  forward, backward = next(
    (tiles for name, tiles in TILES if name in kind), DEFAULT
  )
  if head_dim > LANES:  # Twice the channels in half the tile fit VMEM.
    forward, backward = (
      tuple(side // 2 for side in tile) for tile in (forward, backward)
    )
  return forward, backward


def _scaled(q: jax.Array) -> jax.Array:
  """q / sqrt(K); the kernel does not scale scores."""
  return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)


def _tile(blocks: tuple[int, int], q, k) -> tuple[int, int]:
  return _block(blocks[0], q.shape[2]), _block(blocks[1], k.shape[2])


@functools.lru_cache(maxsize=256)
def _block(largest: int, length: int) -> int:
  """The block of least cost: padding, and the overhead of small tiles."""

  def cost(block):
    return -(-length // block) * block * (1 + LANES / (4 * block))

  return min(range(largest, 0, -LANES), key=cost)


def _pad(x: jax.Array, block: int, axis: int = 2, value: int = 0) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = 0, -x.shape[axis] % block
  return jnp.pad(x, widths, constant_values=value)


def _segments(q_segments, kv_segments, bq: int, bkv: int):
  def padded(segments, padding, block):
    ids = jnp.where(segments == 0, padding, segments).astype(jnp.int32)
    return _pad(ids, block, axis=1, value=padding)

  return pallas.SegmentIds(
    padded(q_segments, Q_PADDING, bq), padded(kv_segments, KV_PADDING, bkv)
  )
