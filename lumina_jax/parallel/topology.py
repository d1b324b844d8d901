"""Machines to compile for, by name.

v5e:4x4     a slice of 16 TPU v5e chips, which libtpu compiles for anywhere
cpu:8       eight devices on this CPU, to try meshes
gpu         the GPUs of this machine
"""

import contextlib
import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from lumina_jax.files.suggest import did_you_mean
from lumina_jax.parallel import chips
from lumina_jax.parallel.chips import CHIPS, Chip

SHAPE = re.compile(r"\d+(x\d+)*")
# libtpu reads these when it is loaded. The first allows several processes to
# compile at once; the others stop libtpu from searching for a TPU.
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
    name: e.g. "v5e:4x4".
    chip: kind of the devices.
    devices: all devices; those of a TPU slice need not exist.
  """

  name: str
  chip: Chip
  devices: tuple[jax.Device, ...]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return len(self.devices) // self.chip.devices


def find(name: str) -> Topology:
  """The machine of this name.

  Sets JAX's platform, so call it before any computation.

  Raises:
    ValueError: if the name is unknown, with similar names, or if libtpu, GPUs
      or CPU devices are missing.
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
  largest = CHIPS[kind].slices[-1]
  if chips.chip_count(shape) > chips.chip_count(largest):
    raise ValueError(_unknown(name, kind))
  return _tpu(name, CHIPS[kind], shape)


def _tpu(name: str, chip: Chip, shape: str) -> Topology:
  setup_libtpu()
  options = {"chip_config_name": chip.variant} if chip.variant else {}
  if chips.chip_count(shape) == 1:  # libtpu assumes hosts of 2 x 2.
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
      f"compiling for {name} needs libtpu, which runs on any Linux machine: "
      "pip install -r requirements-tpu.txt. Or use --topology=cpu:8, eight "
      "devices on this CPU"
    )


def setup_libtpu() -> None:
  """Configures JAX and libtpu to compile for TPUs on a machine without them."""
  for key, value in LIBTPU.items():
    os.environ.setdefault(key, value)
  jax.config.update("jax_platforms", "cpu")
  # The cache does not support programs for other machines, and warns each time.
  jax.config.update("jax_enable_compilation_cache", False)


def _cpu(name: str, shape: str) -> Topology:
  if not shape.isdecimal():
    raise ValueError(
      f"topology {name!r}: write the number of devices, e.g. cpu:8"
    )
  count = int(shape)
  jax.config.update("jax_platforms", "cpu")
  with contextlib.suppress(RuntimeError):  # The backend runs; checked below.
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
    f"topology {name!r}: {kind} has no data sheet in parallel/chips.py; known "
    f"are {', '.join(n for n, chip in CHIPS.items() if not chip.slices)}"
  )


def _unknown(name: str, kind: str) -> str:
  """The error for an unknown name, with similar names."""
  kinds = [n for n, chip in CHIPS.items() if chip.slices]
  if kind in kinds:
    slices = chips.nearest_slices(CHIPS[kind], name)
    hint = f"; did you mean {' or '.join(f'{kind}:{s}' for s in slices)}?"
  else:
    known = [f"{n}:{shape}" for n in kinds for shape in CHIPS[n].slices]
    hint = did_you_mean(name.lower(), known) or ";"
  return (
    f"unknown topology {name!r}{hint} write a chip ({', '.join(kinds)}) and "
    "the shape of a slice, e.g. v5e:4x4, or cpu:8, or gpu"
  )
