"""What lies where: bytes of a training state on each device, as a table.

Works on arrays and on shapes with shardings alike, so that a state can be
weighed before there is any memory behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import NamedSharding

from lumina_jax.parallel.mesh import as_axes

# Groups of parameters with a line of their own, and the least they weigh.
LARGEST, SHARE = 8, 0.01
MIB, GIB = 2**20, 2**30
ALIGN = (str.ljust, str.ljust, str.rjust, str.rjust)  # of columns


class Row(NamedTuple):
  """Parameters of equal shape, type and sharding, side by side in a network.

  Attributes:
    name: their path, e.g. "blocks/attention/{key,query}" of the backbone.
    layout: type and shape, each axis with the mesh axes that cut it, e.g.
      "f32[6, 128/fsdp/context, 8/tensor, 16]".
    local: bytes of all of them on one device.
    whole: bytes without sharding.
    count: how many they are.
  """

  name: str
  layout: str
  local: int
  whole: int
  count: int


def weigh(tree: Any) -> tuple[int, int]:
  """Bytes of all leaves: on one device, and without sharding."""
  leaves = jax.tree.leaves(tree)
  return sum(map(_local, leaves)), sum(map(_whole, leaves))


def rows(params: Any) -> list[Row]:
  """Groups of parameters, those of most bytes on a device first.

  Args:
    params: a nested dict of leaves with shape, dtype and sharding.
  """
  groups: dict[tuple[Any, ...], dict[tuple[str, ...], Any]] = {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    # Siblings, such as query and key, differ in the last name but one.
    around = path[:-2], path[-1], len(path)
    key = (*around, _layout(leaf))
    groups.setdefault(key, {})[path] = leaf
  found = [
    Row(_name(list(leaves)), layout, *weigh(list(leaves.values())), len(leaves))
    for (*_, layout), leaves in groups.items()
  ]
  return sorted(found, key=lambda row: -row.local)


def describe(params: Any, ema: Any, opt_state: Any) -> str:
  """A table of how a state is sharded, of two lines if it is not.

  Args:
    params: parameters, a nested dict; leaves have shape, dtype and sharding.
    ema: their average.
    opt_state: the optimizer's moments.
  """
  parts = {
    "all parameters": weigh(params),
    "their average": weigh(ema),
    "optimizer's moments": weigh(opt_state),
  }
  local, whole = (sum(column) for column in zip(*parts.values(), strict=True))
  parts["state"] = local, whole
  unit = (GIB, "GiB") if whole >= 10 * GIB else (MIB, "MiB")
  if local == whole:
    return _unsharded(parts, unit)
  groups = rows(params)
  least = SHARE * sum(row.local for row in groups)
  shown = [row for row in groups if row.local >= least][:LARGEST]
  rest = groups[len(shown) :]
  lines = [(row.name, row.layout, row.local, row.whole) for row in shown]
  if rest:
    small = sum(row.local for row in rest), sum(row.whole for row in rest)
    lines.append((f"{sum(row.count for row in rest)} smaller", "", *small))
  lines += [(name, "", *weight) for name, weight in parts.items()]
  return _table(lines, len(parts), unit)


def _unsharded(parts: dict[str, tuple[int, int]], unit: tuple[int, str]) -> str:
  *each, (_, (whole, _)) = parts.items()
  size, name = unit
  of = ", ".join(f"{part} {local / size:,.1f}" for part, (local, _) in each)
  return (
    f"state: {whole / size:,.1f} {name} on each device, nothing is sharded\n"
    f"  ({of})"
  )


def _table(
  lines: Sequence[tuple[str, str, int, int]],
  totals: int,
  unit: tuple[int, str],
) -> str:
  """Text in columns; the last lines, totals, stand below a rule."""
  size, of_unit = unit
  cells = [
    ("parameters", "shape /axis it is cut over", f"{of_unit} each", "in all")
  ]
  for name, layout, local, whole in lines:
    cells.append((name, layout, f"{local / size:,.2f}", f"{whole / size:,.2f}"))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  text = [
    "  ".join(
      align(word, width)
      for align, word, width in zip(ALIGN, cell, widths, strict=True)
    )
    for cell in cells
  ]
  text.insert(len(text) - totals, "-" * len(text[0]))
  return "\n".join(text)


def _layout(leaf: Any) -> str:
  cuts: list[tuple[str, ...]] = [()] * len(leaf.shape)
  sharding = leaf.sharding
  if isinstance(sharding, NamedSharding):
    for axis, names in enumerate(sharding.spec):
      cuts[axis] = tuple(
        name for name in as_axes(names) if sharding.mesh.shape[name] > 1
      )
  sizes = (
    "/".join([str(size), *cut])
    for size, cut in zip(leaf.shape, cuts, strict=True)
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


def _local(leaf: Any) -> int:
  shape = leaf.sharding.shard_shape(tuple(leaf.shape))
  return math.prod(shape) * leaf.dtype.itemsize


def _whole(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize
