"""One mesh, one tuple of rules: where every array lives.

Parameters and activations have separate logical names: a long sample with one
row needs parameters over (fsdp, context) and its length over context.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes; None = replicated. Every name has a rule.
RULES = (
  ("embed", ("fsdp", "context")),
  ("text", ("fsdp", "context")),
  ("cond_in", ("fsdp", "context")),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("vocab", "tensor"),
  ("modulation", "tensor"),
  ("cond", None),
  ("norm", None),
  ("head_dim", None),
  ("layers", None),
  ("expert", None),
  ("act_batch", ("data", "fsdp")),
  ("act_length", "context"),
  ("act_heads", "tensor"),
  ("act_mlp", "tensor"),
  ("act_embed", None),
)

ROWS = PartitionSpec(("data", "fsdp"))
ROWS_LENGTH = PartitionSpec(("data", "fsdp"), "context")


# What a dimension counts, for whoever chose a mesh that does not divide it.
COUNTS = {
  "embed": "the width of the network",
  "text": "channels of text features",
  "cond_in": "the width that steers the norms",
  "heads": "attention heads, of which keys and values may have fewer",
  "mlp": "channels of the feed-forward",
  "modulation": "shifts, scales and gates",
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis within a slice, and slices along each axis.

  The degree of the mesh on an axis is the product of both. Of the devices and
  of the slices one may be -1: the rest.

  A slice is a TPU slice; its devices talk over fast links (ICI), slices over
  the network of the data centre (DCN), which suits `data` best, then `fsdp`.
  Other devices have no slices: there, the dcn degrees cut them into equal runs
  in order of their processes, and -1 is one run a process.
  """

  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1
  dcn_data: int = 1
  dcn_fsdp: int = 1
  dcn_context: int = 1
  dcn_tensor: int = 1


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """Lays devices out as (data, fsdp, context, tensor).

  Along each axis slices stand outside, the devices of a slice inside.

  Raises:
    ValueError: if the degrees do not multiply to the number of slices, or of
      the devices of each.
  """
  devices = jax.devices() if devices is None else devices
  across = {f"dcn_{axis}": getattr(cfg, f"dcn_{axis}") for axis in AXES}
  within = {axis: getattr(cfg, axis) for axis in AXES}
  slices = _slices(devices, across)
  each = f" of {len(slices[0])} devices each" if len(slices) > 1 else ""
  across = _fill(across, len(slices), "slices", each)
  each = f" in each of {len(slices)} slices" if len(slices) > 1 else ""
  within = _fill(within, len(slices[0]), "devices", each)
  grids = [
    mesh_utils.create_device_mesh(within, s, allow_split_physical_axes=True)
    for s in slices
  ]
  blocks = np.stack(grids).reshape(*across, *within)
  # Each axis of slices goes before the axis of devices that it multiplies.
  order = [n for axis in range(len(AXES)) for n in (axis, axis + len(AXES))]
  layout = blocks.transpose(order).reshape(np.multiply(across, within))
  return Mesh(layout, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(
  devices: list[jax.Device], degrees: dict[str, int]
) -> list[list[jax.Device]]:
  """Groups devices into slices of equal size, in order."""
  if devices[0].platform == "tpu":
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
      found.setdefault(getattr(device, "slice_index", 0), []).append(device)
    sizes = {number: len(found[number]) for number in sorted(found)}
    if len(set(sizes.values())) > 1:
      raise ValueError(f"slices of unlike numbers of devices: {sizes}")
    return [found[number] for number in sizes]
  processes = len({device.process_index for device in devices})
  asked = _product(degrees)
  count = max(asked, processes) if -1 in degrees.values() else asked
  if count == 1:
    return [devices]
  if len(devices) % count:
    raise ValueError(
      f"mesh {degrees}: {len(devices)} devices do not divide into {count} "
      "equal slices"
    )
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  size = len(devices) // count
  return [devices[i : i + size] for i in range(0, len(devices), size)]


def _fill(
  degrees: dict[str, int], count: int, things: str, each: str
) -> tuple[int, ...]:
  """Degrees with the number that -1 stands for."""
  known = _product(degrees)
  free = [axis for axis, degree in degrees.items() if degree == -1]
  if free:
    degrees = degrees | {free[0]: count // known}
  if math.prod(degrees.values()) != count:
    raise ValueError(
      f"mesh {degrees} needs {math.prod(degrees.values()) or known} {things}, "
      f"there are {count}{each}; set config.mesh so that the product fits, or "
      "one axis to -1"
    )
  return tuple(degrees.values())


def _product(degrees: dict[str, int]) -> int:
  """Of the degrees that are known.

  Raises:
    ValueError: for a degree that is none.
  """
  values = list(degrees.values())
  if any(d < 1 and d != -1 for d in values) or values.count(-1) > 1:
    raise ValueError(
      f"mesh {degrees}: positive degrees, at most one of them -1"
    )
  return math.prod(d for d in values if d != -1)


def shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of parameters boxed with their logical axes.

  Raises:
    ValueError: if a rule was silently dropped for an array, since the mesh axis
      was taken by another of its dimensions, or does not divide its dimension.
  """
  specs = nn.get_partition_spec(boxed)
  tree = nn.logical_to_mesh_sharding(specs, mesh, RULES)

  def check(path, logical, sharding, array):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    wanted = [mesh_axes(axis) for axis in logical]
    got = [as_axes(axes) for axes in sharding.spec]
    got += [()] * (len(wanted) - len(got))
    for size, axis, want, have in zip(
      array.shape, logical, wanted, got, strict=True
    ):
      if want != have:
        raise ValueError(
          f"{name}: axes {want} of the mesh were dropped; logical axes "
          f"{tuple(logical)} name a mesh axis twice"
        )
      degree = math.prod(mesh.shape[axis] for axis in want)
      if size % degree:
        raise ValueError(
          f"{name}: dimension {size} does not divide over {want} = {degree} "
          f"devices; it counts {COUNTS.get(axis, axis)}. Set config.mesh so "
          f"that {' x '.join(want)} divides {size}, for instance "
          f"{math.gcd(size, degree)}, or choose another size of the network"
        )

  is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
  jax.tree_util.tree_map_with_path(
    check, specs, tree, nn.unbox(boxed), is_leaf=is_spec
  )
  return tree


def mesh_axes(logical: str | None) -> tuple[str, ...]:
  """Mesh axes of one logical axis.

  Raises:
    ValueError: if no rule names it.
  """
  if logical is None:
    return ()
  rules = dict(RULES)
  if logical not in rules:
    raise ValueError(f"logical axis {logical!r} has no rule in mesh.RULES")
  return as_axes(rules[logical])


def as_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """An entry of a PartitionSpec as the axes that it names."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def divisors() -> tuple[int, int]:
  """What rows, and what tokens of a row, must divide by on the mesh in force.

  1 and 1 where there is none.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1, 1
  return mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["context"]


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
