"""The device mesh, and the rules that shard every array over it.

Parameters and activations have separate logical axes, since a batch of one long
row needs parameters over (fsdp, context) and its length over context.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes; None = replicated. Every logical axis has a rule.
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


# Logical axes in words, for errors about meshes that do not divide them.
MEANING = {
  "embed": "the width of the network",
  "text": "channels of text features",
  "cond_in": "channels of the modulation's input",
  "heads": "attention heads, of which keys and values may have fewer",
  "mlp": "channels of the feed-forward",
  "modulation": "shifts, scales and gates",
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per axis within a slice, and slices per axis.

  The size of a mesh axis is the product of both. One of the device degrees and
  one of the slice degrees can be -1, which takes the rest.

  Devices of a TPU slice communicate over fast links (ICI), slices over the data
  centre network (DCN), which suits `data` best, then `fsdp`. Other devices have
  no slices: the dcn degrees divide them into equal groups in process order, and
  -1 makes one group per process.
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
  """The mesh (data, fsdp, context, tensor).

  Along each axis, slices are outermost and the devices of a slice innermost.

  Raises:
    ValueError: if the product of the degrees is not the number of slices, or of
      devices per slice.
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
  # Interleave: each axis of slices precedes its axis of devices.
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
      raise ValueError(f"slices have different numbers of devices: {sizes}")
    return [found[number] for number in sizes]
  processes = len({device.process_index for device in devices})
  known = _product(degrees)
  count = max(known, processes) if -1 in degrees.values() else known
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
  """Replaces -1 by the rest and checks the product."""
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
  """The product of all degrees except -1.

  Raises:
    ValueError: if a degree is neither positive nor -1, or two are -1.
  """
  values = list(degrees.values())
  if any(d < 1 and d != -1 for d in values) or values.count(-1) > 1:
    raise ValueError(
      f"mesh {degrees}: use positive degrees, at most one of them -1"
    )
  return math.prod(d for d in values if d != -1)


def shardings(boxed: Any, mesh: Mesh) -> Any:
  """Shardings of parameters that are boxed with their logical axes.

  Raises:
    ValueError: if Flax drops a mesh axis because an array uses it twice, or if
      a dimension does not divide over its mesh axes.
  """
  specs = nn.get_partition_spec(boxed)
  tree = nn.logical_to_mesh_sharding(specs, mesh, RULES)

  def check(path, logical, sharding, array):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    expected = [mesh_axes(axis) for axis in logical]
    found = [as_axes(axes) for axes in sharding.spec]
    found += [()] * (len(expected) - len(found))
    for size, axis, want, have in zip(
      array.shape, logical, expected, found, strict=True
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
          f"devices; it counts {MEANING.get(axis, axis)}. Set config.mesh so "
          f"that {' x '.join(want)} divides {size}, for instance "
          f"{math.gcd(size, degree)}, or change the size of the network"
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
  """An entry of a PartitionSpec as a tuple of mesh axes."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def divisors() -> tuple[int, int]:
  """Divisors of the number of rows and of tokens per row on the active mesh.

  (1, 1) without a mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1, 1
  return mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["context"]


def parse_mesh(text: str) -> MeshConfig:
  """Parses "data=1,fsdp=4"; axes that are left out have degree 1.

  Raises:
    ValueError: naming the part that is not an axis and a number.
  """
  degrees: dict[str, int] = {}
  for part in text.split(","):
    axis, _, number = part.strip().partition("=")
    valid = axis in AXES and axis not in degrees
    if not valid or not re.fullmatch(r"-1|[1-9]\d*", number.strip()):
      raise ValueError(
        f"mesh {text!r}: {part!r} is not one of data=N, fsdp=N, context=N, "
        "tensor=N, each at most once; e.g. data=1,fsdp=4,context=1,tensor=1"
      )
    degrees[axis] = int(number)
  return MeshConfig(**{"data": 1} | degrees)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())
