"""One mesh, one tuple of rules: where every array lives.

Parameters and activations have separate logical names: a long sample with one
row needs parameters over (fsdp, context) and its length over context.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn
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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1, the rest of the devices."""

  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """Lays devices out as (data, fsdp, context, tensor).

  Raises:
    ValueError: if the degrees do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  degrees = {axis: getattr(cfg, axis) for axis in AXES}
  known = math.prod(d for d in degrees.values() if d != -1)
  free = [axis for axis, degree in degrees.items() if degree == -1]
  if any(d < 1 and d != -1 for d in degrees.values()) or len(free) > 1:
    raise ValueError(
      f"mesh {degrees}: positive degrees, at most one of them -1"
    )
  if free:
    degrees[free[0]] = len(devices) // known
  if math.prod(degrees.values()) != len(devices):
    raise ValueError(
      f"mesh {degrees} needs {math.prod(degrees.values()) or known} devices, "
      f"there are {len(devices)}; set config.mesh so that the product fits, or "
      "one axis to -1"
    )
  return jax.make_mesh(
    tuple(degrees.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of a tree of parameters boxed with their logical axes.

  Raises:
    ValueError: if a rule was silently dropped for an array, since the mesh axis
      was taken by another of its dimensions, or does not divide its dimension.
  """
  specs = nn.get_partition_spec(boxed)
  tree = nn.logical_to_mesh_sharding(specs, mesh, RULES)

  def check(path, logical, sharding, array):
    name = jax.tree_util.keystr(path)
    wanted = [mesh_axes(axis) for axis in logical]
    got = [_tuple(axes) for axes in sharding.spec]
    got += [()] * (len(wanted) - len(got))
    for size, want, have in zip(array.shape, wanted, got, strict=True):
      if want != have:
        raise ValueError(
          f"{name}: axes {want} of the mesh were dropped; logical axes "
          f"{tuple(logical)} name a mesh axis twice"
        )
      degree = math.prod(mesh.shape[axis] for axis in want)
      if size % degree:
        raise ValueError(
          f"{name}: dimension {size} does not divide over {want} = {degree} "
          "devices; choose another config.mesh or width"
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
  return _tuple(rules[logical])


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
