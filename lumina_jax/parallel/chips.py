"""Data sheets of accelerators.

Peaks, HBM and ICI bandwidth: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,
tpu7x}, and NVIDIA's data sheets of H100 SXM and H200 SXM (dense, NVLink).
Usable HBM: libtpu 0.0.42.1 names it when it refuses a program that is too large
("exceeds available HBM (15.75G)"), forced once for each kind; on GPUs, the
three quarters that JAX allocates by default. Slices: those that Google Cloud
offers, from the same pages.
"""

import dataclasses
import math
import re
from typing import Any

TERA, GIGA, GIB = 1e12, 1e9, 2**30

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  "2x2x1",
  "2x2x2",
  "2x2x4",
  "2x4x4",
  "4x4x4",
  "4x4x8",
  "4x8x8",
  "8x8x8",
  "8x8x16",
  "8x16x16",
  "16x16x16",
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator. Numbers are per JAX device.

  Attributes:
    name: common name, as in "v5e:4x4".
    flops: peak bfloat16 FLOP/s of matrix products; 0 = unknown.
    usable: bytes of HBM that a program can fill; 0 = no limit.
    bandwidth: bytes per second from and to HBM.
    ici: bytes per second that it sends over all links together: half of the
      published number, which counts both directions.
    devices: JAX devices per chip.
    slices: shapes on offer, smallest first.
    libtpu: libtpu's name; "" if it is not a TPU.
    variant: libtpu's name of the configuration that JAX users get; "" for
      libtpu's default.
  """

  name: str
  flops: float
  usable: int
  bandwidth: float
  ici: float
  devices: int = 1
  slices: tuple[str, ...] = ()
  libtpu: str = ""
  variant: str = ""


def _tpu(
  name, tera, usable, bandwidth, ici, slices, devices=1, **fields
) -> Chip:
  """A chip from its data sheet; only `usable` is per device there."""
  return Chip(
    name,
    tera * TERA / devices,
    int(usable * GIB),
    bandwidth * GIGA / devices,
    ici * GIGA / 2 / devices,
    devices,
    slices,
    **{"libtpu": name} | fields,
  )


CHIPS = {
  chip.name: chip
  for chip in (
    _tpu("v4", 275, 30.75, 1228, 540, _CUBES, variant="megacore"),
    _tpu("v5e", 197, 15.75, 819, 400, _FLAT),
    _tpu("v5p", 459, 95.74, 2765, 1200, _CUBES),
    _tpu("v6e", 918, 31.25, 1638, 800, _FLAT),
    _tpu("v7x", 2307, 94.75, 7380, 1200, _CUBES, devices=2, libtpu="tpu7x"),
    Chip("h100", 989 * TERA, 60 * GIB, 3350 * GIGA, 450 * GIGA),
    Chip("h200", 989 * TERA, 105 * GIB, 4800 * GIGA, 450 * GIGA),
    Chip("cpu", 0, 0, 0, 0),
  )
}


def chip_of(device: Any) -> Chip | None:
  """The chip of a JAX device; None if it is unknown."""
  kind = device.device_kind.lower()
  names = {chip.libtpu or chip.name: chip for chip in CHIPS.values()}
  # Device kinds of libtpu: "TPU v5 lite", "TPU v6 lite", "TPU v5", "TPU7x".
  kind = kind.replace("tpu ", "").replace(" lite", "e")
  kind = "v5p" if kind == "v5" else kind
  return next(
    (chip for name, chip in names.items() if name in kind and chip.flops), None
  )


def chip_count(shape: str) -> int:
  """Chips in a slice: "4x4" -> 16."""
  return math.prod(int(side) for side in shape.split("x"))


def nearest_slices(chip: Chip, name: str) -> list[str]:
  """Three slices of about as many chips as in the name, smallest first."""
  sides = [int(side) for side in re.findall(r"\d+", name.partition(":")[2])]
  wanted = math.prod(max(side, 1) for side in sides)

  def distance(shape):
    return abs(math.log(chip_count(shape) / wanted))

  return sorted(sorted(chip.slices, key=distance)[:3], key=chip_count)


def larger_slices(chip: Chip, chips: int) -> list[str]:
  """Slices of more than `chips` chips, smallest first."""
  return [shape for shape in chip.slices if chip_count(shape) > chips]
