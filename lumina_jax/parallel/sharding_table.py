"""Prints how a training state is sharded, with bytes per device.

Works on arrays and on abstract arrays with shardings, so a state can be
measured before it is created.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import NamedSharding

from lumina_jax.files.table import text_table
from lumina_jax.parallel.mesh import as_axes

# Most groups in the table, and the share of all bytes that a group needs.
MAX_GROUPS, MIN_SHARE = 8, 0.01
MIB, GIB = 2**20, 2**30


class Group(NamedTuple):
  """Sibling parameters of equal shape, dtype and sharding.

  Attributes:
    name: their path, e.g. "blocks/attention/{key,query}" of the backbone.
    layout: dtype and shape, each dimension with the mesh axes that shard it,
      e.g. "f32[6, 128/fsdp/context, 8/tensor, 16]".
    local: bytes on one device.
    total: bytes without sharding.
    count: number of parameters.
  """

  name: str
  layout: str
  local: int
  total: int
  count: int


def tree_bytes(tree: Any) -> tuple[int, int]:
  """Bytes of all leaves: on one device, and without sharding."""
  local = total = 0
  for leaf in jax.tree.leaves(tree):
    shape, size = tuple(leaf.shape), leaf.dtype.itemsize
    local += math.prod(leaf.sharding.shard_shape(shape)) * size
    total += math.prod(shape) * size
  return local, total


def group_parameters(params: Any) -> list[Group]:
  """Groups siblings, sorted by bytes on a device, largest first.

  Args:
    params: a nested dict of leaves with shape, dtype and sharding.
  """
  groups: dict[tuple[Any, ...], dict[tuple[str, ...], Any]] = {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    # Siblings, such as query and key, differ in the last name but one.
    key = path[:-2], path[-1], len(path), _layout(leaf)
    groups.setdefault(key, {})[path] = leaf
  found = [
    Group(_name([*leaves]), layout, *tree_bytes(leaves), len(leaves))
    for (*_, layout), leaves in groups.items()
  ]
  return sorted(found, key=lambda group: -group.local)


def sharding_table(params: Any, ema: Any, opt_state: Any) -> str:
  """A table of the state on each device; two lines if nothing is sharded.

  Args:
    params: parameters, a nested dict; leaves have shape, dtype and sharding.
    ema: their exponential moving average.
    opt_state: the optimizer's moments.
  """
  parts = {
    "parameters": tree_bytes(params),
    "EMA": tree_bytes(ema),
    "optimizer": tree_bytes(opt_state),
  }
  local, total = (sum(column) for column in zip(*parts.values(), strict=True))
  unit, name = (GIB, "GiB") if total >= 10 * GIB else (MIB, "MiB")
  if local == total:
    sizes = ", ".join(f"{k} {n / unit:,.1f}" for k, (n, _) in parts.items())
    return (
      f"state: {total / unit:,.1f} {name} on each device, nothing is sharded\n"
      f"  ({sizes})"
    )

  def row(label, layout, local, total):
    return label, layout, f"{local / unit:,.2f}", f"{total / unit:,.2f}"

  groups = group_parameters(params)
  least = MIN_SHARE * sum(group.local for group in groups)
  shown = [group for group in groups if group.local >= least][:MAX_GROUPS]
  rows = [row(*group[:4]) for group in shown]
  if rest := groups[len(shown) :]:
    number = sum(group.count for group in rest)
    sums = sum(g.local for g in rest), sum(g.total for g in rest)
    rows.append(row(f"{number} smaller", "", *sums))
  parts["state"] = local, total
  header = "parameter", "shape / mesh axes", f"{name} per device", "in total"
  totals = [row(label, "", *sizes) for label, sizes in parts.items()]
  return text_table(header, rows, totals, left=2)


def _layout(leaf: Any) -> str:
  axes: list[tuple[str, ...]] = [()] * len(leaf.shape)
  sharding = leaf.sharding
  if isinstance(sharding, NamedSharding):
    for dimension, names in enumerate(sharding.spec):
      axes[dimension] = tuple(
        name for name in as_axes(names) if sharding.mesh.shape[name] > 1
      )
  sizes = (
    "/".join([str(size), *names])
    for size, names in zip(leaf.shape, axes, strict=True)
  )
  dtype = str(leaf.dtype).replace("float", "f")
  return f"{dtype}[{', '.join(sizes)}]"


def _name(paths: Sequence[tuple[str, ...]]) -> str:
  if len(paths[0]) < 2:
    return paths[0][0]
  *above, last, leaf = paths[0]
  siblings = sorted(path[-2] for path in paths)
  if len(siblings) > 3:
    siblings = [*siblings[:2], f"{len(siblings) - 2} more"]
  above = above[1:] if above[:1] == ["backbone"] else above
  names = [*above, f"{{{','.join(siblings)}}}" if len(paths) > 1 else last]
  return "/".join(names if leaf == "kernel" else [*names, leaf])
