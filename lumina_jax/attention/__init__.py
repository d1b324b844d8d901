"""Bidirectional attention over segments: one rule, one function.

`attend` is what networks call. Beneath it `kernels` chooses who multiplies and
`split` how a sequence on many devices is shared out; `sequence` does that.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from lumina_jax.attention import kernels, sequence, split
from lumina_jax.attention.kernel import Kernel

NAME = "attention"
QUERIES = ("act_batch", "act_length", "act_heads", None)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
  *,
  kernel: str | Kernel = "auto",
  sequence_split: str = "auto",
  kv_length: str | None = "act_length",
  packed: bool = True,
  name: str = NAME,
) -> jax.Array:
  """Attention among tokens of equal, non-zero segment.

  On a mesh (`jax.set_mesh`) of several devices it lies where the logical axis
  rules in force say, and every device computes its share. No `jax.vmap` there:
  JAX has none for groups within a mesh axis.

  Args:
    q: `[B, L, H, K]` queries; head h reads kv head h // (H / G).
    k: `[B, S, G, K]` keys, G divides H.
    v: `[B, S, G, K]` values.
    q_segments: `i32[B, L]`.
    kv_segments: `i32[B, S]`.
    kernel: a name of `kernels.NAMES`, or a kernel.
    sequence_split: see `split.choose`.
    kv_length: logical axis of S; None = every device has all keys, as of text.
    packed: False promises rows of one sample, its padding last.
    name: of what `remat` may save, see `sequence.saved`.

  Returns:
    `[B, L, H, K]`; zeros, without gradient, where a query has no key.

  Raises:
    ValueError: if arrays do not divide over the mesh, or the kernel that was
      asked for cannot serve.
  """
  mesh = jax.sharding.get_abstract_mesh()
  chosen = functools.partial(
    kernels.choose, kernel, head_dim=q.shape[-1], dtype=q.dtype, packed=packed
  )
  if mesh.empty or mesh.size == 1:
    inputs = q, k, v, q_segments, kv_segments
    return attend_here(*inputs, kernel=chosen(), name=name)
  shared = kv_length == QUERIES[1]
  rows, length, heads = _placed(q, k, mesh, shared)
  keys = length if shared else None
  devices = mesh.shape[length] if keys else 1
  shards = mesh.shape[heads] if heads else 1
  how = split.choose(
    sequence_split,
    devices,
    q.shape[2] // shards,
    k.shape[2] // shards,
    q.shape[1],
    q.shape[3] * q.dtype.itemsize,
    q.shape[0] // _degree(rows or (), mesh),
  )

  def share(q, k, v, q_segments, kv_segments):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    inputs = q, k, v, q_segments, kv_segments
    local = chosen(ring=how.ring > 1)
    out = sequence.attend_over(length, devices, how, local, *inputs, name)
    return jnp.swapaxes(out, 1, 2)

  P = PartitionSpec
  return jax.shard_map(
    share,
    in_specs=(
      P(rows, length, heads),
      *[P(rows, keys, heads)] * 2,
      P(rows, length),
      P(rows, keys),
    ),
    out_specs=P(rows, length, heads),
    check_vma=False,
  )(q, k, v, q_segments, kv_segments)


def attend_here(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
  *,
  kernel: Kernel | sequence.Whole | None = None,
  name: str = NAME,
) -> jax.Array:
  """`attend` on one device, or wherever XLA's partitioner puts it."""
  kernel = kernel or kernels.choose("chunked")
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  out = sequence.attend_here(kernel, q, k, v, q_segments, kv_segments, name)
  return jnp.swapaxes(out, 1, 2)


def _placed(q, k, mesh, keys: bool):
  """Mesh axes of rows, length (of keys too?) and heads, or None.

  Raises:
    ValueError: if length or heads do not divide over theirs.
  """
  rows, length, heads, _ = nn.logical_to_mesh_axes(QUERIES)
  rows = _dividing(q.shape[0], rows, mesh)
  for name, axis, size in (
    ("tokens of a row", length, q.shape[1]),
    ("keys of a row", keys and length, k.shape[1]),
    ("heads", heads, q.shape[2]),
    ("kv_heads", heads, k.shape[2]),
  ):
    if axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{name} = {size} do not divide over mesh.{axis} = {mesh.shape[axis]} "
        "devices; choose another mesh, or a multiple"
      )
  return rows or None, length, heads


def _dividing(count: int, axes, mesh) -> tuple[str, ...]:
  """The mesh axes that rows are shared out over.

  Where few rows do not divide over all, e.g. those of one picture, they are
  over the first ones; devices along the others compute the same.
  """
  axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
  while count % _degree(axes, mesh):
    axes = axes[:-1]
  return axes


def _degree(axes: tuple[str, ...], mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)
