"""What a compiled program takes of a device: memory, links, kernels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax

from lumina_jax.parallel.hlo import Hlo, Traffic

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)(?:i?B)?"
_TOO_LARGE = (  # TPU, refused early and late
  re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
  re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)
# GPUs, and hosts: how much was asked for, not how much there is.
_ALLOCATING = re.compile(r"(?:allocate|allocating) (\d+) bytes")


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """Why a program was refused.

  Attributes:
    needed: bytes of a device.
    usable: bytes that it may fill, 0 if the compiler does not say.
  """

  needed: int
  usable: int


@dataclasses.dataclass(frozen=True)
class Program:
  """What one run of a compiled program takes of each device.

  Attributes:
    peak: bytes at the worst moment, arguments included.
    arguments: bytes of what it is given.
    host: bytes of the host's memory for what is offloaded.
    traffic: collectives by kind.
    kernels: Pallas kernels in it.
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
) -> Program | TooLarge:
  """Compiles for the devices that it was lowered for; runs nothing.

  Args:
    lowered: the program.
    devices: all of those devices.

  Raises:
    jax.errors.JaxRuntimeError: whatever the compiler says but out of memory.
  """
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    refused = too_large(str(error))
    if refused is None:
      raise
    return refused
  memory = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes
  if devices[0].platform != "tpu":  # Elsewhere it leaves temporaries out.
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


def too_large(message: str) -> TooLarge | None:
  """What an error says of memory; None if it is about something else."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in _TOO_LARGE:
    if found := pattern.search(message):
      needed, unit, usable, unit_usable = found.groups()
      return TooLarge(_to_bytes(needed, unit), _to_bytes(usable, unit_usable))
  if found := _ALLOCATING.search(message):
    return TooLarge(int(found[1]), 0)
  return None


def _to_bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])
