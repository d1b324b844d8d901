"""Bidirectional attention within segments, on one device or many.

Networks call `attend`. `kernels` selects the implementation, `split` decides
how devices share one sequence, and `sequence_parallel` exchanges their tokens.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from lumina_jax.attention import kernels, sequence_parallel, split
from lumina_jax.attention.kernel import Kernel

NAME = "attention"
QUERIES = ("act_batch", "act_length", "act_heads", None)  # logical axes of q


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

  Under a mesh of several devices (`jax.set_mesh`), the active logical axis
  rules place the arrays and each device computes its share. `jax.vmap` fails
  there: JAX cannot batch collectives over groups within a mesh axis.

  Args:
    q: `[B, L, H, K]` queries; head h reads kv head h // (H / G).
    k: `[B, S, G, K]` keys; G divides H.
    v: `[B, S, G, K]` values.
    q_segments: `i32[B, L]`.
    kv_segments: `i32[B, S]`.
    kernel: one of `kernels.NAMES`, or a kernel.
    sequence_split: see `split.choose`.
    kv_length: logical axis of S; None = every device holds all keys, as for
      text.
    packed: False promises that each row holds one sample, padding last.
    name: prefix of the names that `remat` can save, see
      `sequence_parallel.checkpoint_names`.

  Returns:
    `[B, L, H, K]`; zeros, without gradient, where a query has no key.

  Raises:
    ValueError: if arrays do not divide over the mesh, or the kernel cannot
      serve a ring.
  """
  mesh = jax.sharding.get_abstract_mesh()
  choose_kernel = functools.partial(
    kernels.choose, kernel, head_dim=q.shape[-1], dtype=q.dtype, packed=packed
  )
  if mesh.empty or mesh.size == 1:
    inputs = q, k, v, q_segments, kv_segments
    return attend_local(*inputs, kernel=choose_kernel(), name=name)
  split_keys = kv_length == QUERIES[1]
  rows, length, heads = _mesh_axes(q, k, mesh, split_keys)
  keys = length if split_keys else None
  devices = mesh.shape[length] if keys else 1
  head_shards = mesh.shape[heads] if heads else 1
  degrees = split.choose(
    sequence_split,
    devices,
    heads=q.shape[2] // head_shards,
    kv_heads=k.shape[2] // head_shards,
    length=q.shape[1],
    width=q.shape[3] * q.dtype.itemsize,
    rows=q.shape[0] // _size(rows or (), mesh),
  )

  def attend_shard(q, k, v, q_segments, kv_segments):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    inputs = q, k, v, q_segments, kv_segments
    local = choose_kernel(ring=degrees.ring > 1)
    args = length, devices, degrees, local, inputs, name
    return jnp.swapaxes(sequence_parallel.attend(*args), 1, 2)

  P = PartitionSpec
  queries, keys_values = P(rows, length, heads), P(rows, keys, heads)
  segments = P(rows, length), P(rows, keys)
  return jax.shard_map(
    attend_shard,
    in_specs=(queries, keys_values, keys_values, *segments),
    out_specs=queries,
    check_vma=False,
  )(q, k, v, q_segments, kv_segments)


def attend_local(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
  *,
  kernel: Kernel | sequence_parallel.AttentionFn | None = None,
  name: str = NAME,
) -> jax.Array:
  """`attend` without `shard_map`: one device, or as XLA partitions it."""
  kernel = kernel or kernels.choose("chunked")
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  inputs = q, k, v, q_segments, kv_segments
  out = sequence_parallel.attend_local(kernel, inputs, name)
  return jnp.swapaxes(out, 1, 2)


def _mesh_axes(
  q: jax.Array, k: jax.Array, mesh: Mesh, split_keys: bool
) -> tuple[tuple[str, ...] | None, str | None, str | None]:
  """Mesh axes of rows, length and heads; None = not sharded.

  Raises:
    ValueError: if a length or a number of heads does not divide over its axis.
  """
  rows, length, heads, _ = nn.logical_to_mesh_axes(QUERIES)
  rows = _dividing(q.shape[0], rows, mesh)
  for name, axis, size in (
    ("tokens of a row", length, q.shape[1]),
    ("keys of a row", split_keys and length, k.shape[1]),
    ("heads", heads, q.shape[2]),
    ("kv_heads", heads, k.shape[2]),
  ):
    if axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{name} = {size} do not divide over mesh.{axis} = {mesh.shape[axis]} "
        "devices; choose another mesh, or a multiple"
      )
  return rows or None, length, heads


def _dividing(
  count: int, axes: str | tuple[str, ...] | None, mesh: Mesh
) -> tuple[str, ...]:
  """The leading mesh axes that rows divide over.

  A few rows, such as those of one image, may not divide over all axes. Devices
  along the remaining axes compute the same rows.
  """
  axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
  while count % _size(axes, mesh):
    axes = axes[:-1]
  return axes


def _size(axes: tuple[str, ...], mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)
