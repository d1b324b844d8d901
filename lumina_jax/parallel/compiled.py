"""Memory, collectives and kernels of a compiled program, per device."""

import dataclasses
import re
from collections.abc import Sequence

import jax

from lumina_jax.parallel.hlo import Hlo, Traffic

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)(?:i?B)?"
_OUT_OF_HBM = (  # TPU compiler, in an early and in a late pass
  re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
  re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)
# GPUs and hosts name what they tried to allocate, not what is available.
_ALLOCATING = re.compile(r"(?:allocate|allocating) (\d+) bytes")


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
  """A program that the compiler refused.

  Attributes:
    needed: bytes per device.
    usable: bytes that a program can fill per device; 0 = unknown.
  """

  needed: int
  usable: int


@dataclasses.dataclass(frozen=True)
class Program:
  """What one run of a compiled program takes per device.

  Attributes:
    peak: bytes at the peak, arguments included.
    arguments: bytes of the arguments.
    host: bytes of host memory for offloaded arrays.
    traffic: collectives by kind.
    kernels: number of Pallas kernels.
  """

  peak: int
  arguments: int
  host: int
  traffic: dict[str, Traffic]
  kernels: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends to others."""
    return sum(traffic.sent for traffic in self.traffic.values())


def compile_program(
  lowered: jax.stages.Lowered, devices: Sequence[jax.Device]
) -> Program | OutOfMemory:
  """Compiles a lowered program without running it.

  Args:
    lowered: the program.
    devices: all devices that it was lowered for.

  Raises:
    jax.errors.JaxRuntimeError: any compiler error other than out of memory.
  """
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    refused = parse_out_of_memory(str(error))
    if refused is None:
      raise
    return refused
  memory = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes
  if devices[0].platform != "tpu":  # Other compilers leave out temporaries.
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    arrays -= memory.alias_size_in_bytes
    peak = max(peak, arrays + memory.temp_size_in_bytes)
  hlo = Hlo(compiled.as_text())
  return Program(
    peak=peak,
    arguments=memory.argument_size_in_bytes,
    host=memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    traffic=hlo.traffic(len(devices)),
    kernels=hlo.kernels,
  )


def parse_out_of_memory(message: str) -> OutOfMemory | None:
  """Parses an error about device memory; None for any other error."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in _OUT_OF_HBM:
    if found := pattern.search(message):
      needed, unit, usable, unit_usable = found.groups()
      return OutOfMemory(
        _to_bytes(needed, unit), _to_bytes(usable, unit_usable)
      )
  if found := _ALLOCATING.search(message):
    return OutOfMemory(int(found[1]), 0)
  return None


def _to_bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])
