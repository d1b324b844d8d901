"""What a compiled program sends between devices, read off its HLO text.

XLA prints each computation once, and a loop's body runs many times; so do the
layers of a scanned network. Each collective counts as often as it runs: the
product of the trip counts of all loops around it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
BITS = {"pred": 8, "token": 0, "opaque": 0}  # Others say it: bf16, f8e4m3fn.

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
# Three spellings of who takes part: {{0,1},{2,3}}, [2,2]<=[4], and the axes of
# a mesh: mesh['a'=2,'b'=4] {'b'}, or a part of an axis, {'b':(2)2}.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_USED = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind.

  Attributes:
    count: how many run.
    sent: bytes that one device sends in all of them, by the algorithms of a
      ring: of n devices, (n - 1) / n of the whole array, twice that to reduce
      and gather it.
  """

  count: int = 0
  sent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: what it gives, what it does, and the rest of it."""

  name: str
  shape: str
  opcode: str
  text: str


class Hlo:
  """A program's computations by name."""

  def __init__(self, text: str):
    """Reads `compiled.as_text()`."""
    self._bodies: dict[str, list[Instruction]] = {}
    self._entry = ""
    current: list[Instruction] = []
    for line in text.splitlines():
      if header := _COMPUTATION.match(line):
        current = self._bodies.setdefault(header[2], [])
        self._entry = header[2] if header[1] else self._entry
      elif found := _INSTRUCTION.match(line):
        opcode = _OPCODE.search(found[3])
        if opcode:
          shape = found[3][: opcode.start()]
          current.append(Instruction(found[2], shape, opcode[1], line))

  def traffic(self, devices: int) -> dict[str, Traffic]:
    """Collectives of a run by kind, those that there are.

    Args:
      devices: that run the program; a group that is not listed is all of them.
    """
    total: dict[str, Traffic] = {}
    for kind, instruction, times in self._collectives():
      members = _members(instruction.text, devices)
      sent = _sent(kind, instruction, members)
      have = total.get(kind, Traffic())
      total[kind] = Traffic(have.count + times, have.sent + times * sent)
    return {kind: total[kind] for kind in KINDS if kind in total}

  @property
  def kernels(self) -> int:
    """Pallas kernels that it has, each counted once."""
    return sum(
      'custom_call_target="tpu_custom_call"' in instruction.text
      for body in self._bodies.values()
      for instruction in body
    )

  def _collectives(self) -> Iterator[tuple[str, Instruction, int]]:
    """Yields (kind, instruction, how often it runs)."""
    # TPUs cut a collective into pieces within several fusions, to run beside
    # other work, some of it in loops; the pieces share its channel, and those
    # that begin and end it stand outside of these loops.
    pieces: dict[str, tuple[str, Instruction, int]] = {}
    for caller, name, times in self._runs(self._entry, self._entry, 1):
      for instruction in self._bodies.get(name, ()):
        kind = _kind(instruction.opcode)
        if kind is None:
          continue
        if "all-reduce-scatter" in name:
          kind = "reduce-scatter"
        channel = _CHANNEL.search(instruction.text)
        if caller == name or not channel:
          yield kind, instruction, times
        elif channel[1] not in pieces or times < pieces[channel[1]][2]:
          pieces[channel[1]] = kind, instruction, times
    yield from pieces.values()

  def _runs(
    self, caller: str, name: str, times: int
  ) -> Iterator[tuple[str, str, int]]:
    """Yields (computation that no fusion holds, computation, how often)."""
    yield caller, name, times
    for instruction in self._bodies.get(name, ()):
      opcode, text = instruction.opcode, instruction.text
      if opcode.endswith(("-done", "-update")):
        continue  # They name what their start has called.
      again = times * self._trips(text) if opcode == "while" else times
      for key, callee in _CALLED.findall(text):
        if callee not in self._bodies:
          continue
        if key == "to_apply" and opcode != "call":
          continue  # What a reduction adds with.
        within = caller if opcode == "fusion" else callee
        yield from self._runs(within, callee, again)
      for branches in _BRANCHES.findall(text):
        for callee in re.findall(r"[\w.\-]+", branches):
          yield from self._runs(callee, callee, times)

  def _trips(self, text: str) -> int:
    """How often a loop turns, 1 if that depends on data.

    Loops of JAX count up from 0; where XLA does not say how far, the constant
    that their condition compares with does.
    """
    if known := _TRIPS.search(text):
      return int(known[1])
    condition = _CONDITION.search(text)
    body = self._bodies.get(condition[1], []) if condition else []
    bounds = [_CONSTANT.search(instruction.text) for instruction in body]
    return max((int(bound[1]) for bound in bounds if bound), default=1)


def _kind(opcode: str) -> str | None:
  opcode = opcode.removesuffix("-start")
  return opcode if opcode in KINDS else None


def _members(text: str, devices: int) -> int:
  """How many devices a collective is among."""
  if listed := _LISTED.search(text):
    return len(listed[1].split(","))
  if iota := _IOTA.search(text):
    return int(iota[1])
  if mesh := _MESH.search(text):
    sizes = {name: int(size) for name, size in _AXIS.findall(mesh[1])}
    return math.prod(
      int(part) if part else sizes[name]
      for name, part in _USED.findall(mesh[2])
    )
  return devices


def _sent(kind: str, instruction: Instruction, n: int) -> float:
  """Bytes that a device sends in one collective among n."""
  arrays = [_bytes(*array) for array in _ARRAY.findall(instruction.shape)]
  size = float(sum(arrays))
  if instruction.opcode.endswith("-start"):
    if kind == "all-gather":
      size *= n / (n + 1)  # Operands stand before results, n times as large.
    elif kind == "collective-permute":
      size = float(max(arrays))
  if kind in ("collective-permute", "collective-broadcast"):
    return size
  share = (n - 1) / n
  match kind:
    case "all-reduce":
      return 2 * share * size
    case "reduce-scatter" if instruction.opcode.startswith("reduce-scatter"):
      return share * size * n
  return share * size


def _bytes(dtype: str, shape: str) -> int:
  sides = [int(side) for side in shape.split(",") if side]
  bits = BITS.get(dtype)
  if bits is None:
    digits = re.search(r"\d+", dtype)
    bits = int(digits[0]) if digits else 0
  return math.prod(sides) * bits // 8
