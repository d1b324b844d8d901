"""Machines by name: those of somebody else, fake ones, and the local GPUs.

v5e:4x4     a slice of 16 TPU v5e chips; libtpu compiles for it anywhere
cpu:8       eight devices that share this CPU, to try meshes on
gpu         the GPUs of this machine
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from lumina_jax.parallel import chips
from lumina_jax.parallel.chips import CHIPS, Chip

SHAPE = re.compile(r"\d+(x\d+)*")
# Read by libtpu when it is loaded. The first lets several compile side by side,
# the others keep it from looking for the machine that it is not on.
LIBTPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: as asked for, e.g. "v5e:4x4".
    chip: their kind.
    devices: of all chips; of a TPU slice none of them need exist.
  """

  name: str
  chip: Chip
  devices: tuple[jax.Device, ...]

  @property
  def chips(self) -> int:
    return len(self.devices) // self.chip.devices


def find(name: str) -> Topology:
  """The machine of that name.

  Chooses JAX's platform, so it must come before anything that runs on a device.

  Raises:
    ValueError: for an unknown name, with near ones, or a machine that cannot
      be had here, with what is missing.
  """
  kind, _, shape = name.strip().lower().partition(":")
  kind = {"tpu7x": "v7x"}.get(kind, kind)
  if kind == "gpu" and not shape:
    return _gpu(name)
  if not SHAPE.fullmatch(shape) or 0 in map(int, shape.split("x")):
    raise ValueError(_unknown(name, kind))
  if kind == "cpu":
    return _cpu(name, shape)
  if kind not in CHIPS or not CHIPS[kind].libtpu:
    raise ValueError(_unknown(name, kind))
  if chips.count(shape) > chips.count(CHIPS[kind].slices[-1]):
    raise ValueError(_unknown(name, kind))
  return _tpu(name, CHIPS[kind], shape)


def _tpu(name: str, chip: Chip, shape: str) -> Topology:
  prepare("cpu")
  options = {"chip_config_name": chip.variant} if chip.variant else {}
  if chips.count(shape) == 1:  # Otherwise libtpu thinks of hosts of 2 x 2.
    options["chips_per_host_bounds"] = (1, 1, 1)
  _need_libtpu(name)
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{chip.libtpu}:{shape}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    if "INVALID_ARGUMENT" not in str(error):
      raise
    raise ValueError(f"{_unknown(name, chip.name)} ({error})") from error
  return Topology(name, chip, tuple(found.devices))


def _need_libtpu(name: str) -> None:
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"compiling for {name} needs libtpu, the compiler of TPUs; it works on "
      "any Linux machine: pip install -r requirements-tpu.txt. Or try "
      "--topology=cpu:8, devices of this CPU"
    )


def prepare(platform: str) -> None:
  """Sets up JAX and libtpu for programs that shall not run here.

  A program for another machine cannot be cached by this one, and asking leaves
  nothing but a warning for each.
  """
  for key, value in LIBTPU.items():
    os.environ.setdefault(key, value)
  jax.config.update("jax_platforms", platform)
  jax.config.update("jax_enable_compilation_cache", False)


def _cpu(name: str, shape: str) -> Topology:
  if not shape.isdecimal():
    raise ValueError(f"topology {name!r}: how many devices, e.g. cpu:8")
  count = int(shape)
  jax.config.update("jax_platforms", "cpu")
  with contextlib.suppress(RuntimeError):  # JAX runs already; see below.
    jax.config.update("jax_num_cpu_devices", count)
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise ValueError(
      f"topology {name!r}: JAX has started with {len(devices)} CPU devices"
    )
  return Topology(name, CHIPS["cpu"], tuple(devices[:count]))


def _gpu(name: str) -> Topology:
  try:
    devices = jax.devices("gpu")
  except RuntimeError as error:
    raise ValueError(
      f"topology {name!r}: JAX finds no GPU ({error})"
    ) from error
  kind = devices[0].device_kind
  for chip in CHIPS.values():
    if not chip.libtpu and chip.name in kind.lower():
      limit = (devices[0].memory_stats() or {}).get("bytes_limit", chip.usable)
      chip = dataclasses.replace(chip, usable=limit)
      return Topology(name, chip, tuple(devices))
  raise ValueError(
    f"topology {name!r}: nothing is known of a {kind}; known are "
    f"{', '.join(n for n, chip in CHIPS.items() if not chip.slices)}"
  )


def _unknown(name: str, kind: str) -> str:
  """Says what there is that looks like it."""
  kinds = [n for n, chip in CHIPS.items() if chip.slices]
  if kind in kinds:
    near = [f"{kind}:{s}" for s in chips.near(CHIPS[kind], name)]
  else:
    known = [f"{n}:{shape}" for n in kinds for shape in CHIPS[n].slices]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
  hint = f"did you mean {' or '.join(near)}? " if near else ""
  return (
    f"unknown topology {name!r}: {hint}Write a chip ({', '.join(kinds)}) and "
    "the shape of a slice, e.g. v5e:4x4, or cpu:8, or gpu"
  )
