"""Counts collectives and bytes sent in the HLO text of a compiled program.

XLA prints the body of a loop once, such as the layer of a scanned network. So a
collective counts as often as it runs: the product of the trip counts of all
loops around it.
"""

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
# Bits of types whose names have no number, unlike bf16 and f8e4m3fn.
BITS = {"pred": 8, "token": 0, "opaque": 0}

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
# Replica groups come in three formats: {{0,1},{2,3}}, [2,2]<=[4], and mesh
# axes: mesh['a'=2,'b'=4] {'b'}, or a part of an axis, {'b':(2)2}.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_USED = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Collectives of one kind.

  Attributes:
    count: number of executions.
    sent: bytes that one device sends in all of them, by ring algorithms: with n
      devices, (n - 1) / n of the whole array, and twice that for an all-reduce.
  """

  count: int = 0
  sent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction: its name, result shape, opcode and whole line."""

  name: str
  shape: str
  opcode: str
  text: str


class Hlo:
  """The computations of a program."""

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
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
    """Collectives of one run, by kind; kinds that do not occur are left out.

    Args:
      devices: devices that run the program; a collective without replica groups
        is among all of them.
    """
    total: dict[str, Traffic] = {}
    for kind, instruction, times in self._collectives():
      members = _members(instruction.text, devices)
      sent = _sent(kind, instruction, members)
      old = total.get(kind, Traffic())
      total[kind] = Traffic(old.count + times, old.sent + times * sent)
    return {kind: total[kind] for kind in KINDS if kind in total}

  @property
  def kernels(self) -> int:
    """The number of Pallas kernels in the text."""
    return sum(
      'custom_call_target="tpu_custom_call"' in instruction.text
      for body in self._bodies.values()
      for instruction in body
    )

  def _collectives(self) -> Iterator[tuple[str, Instruction, int]]:
    """Yields (kind, instruction, number of executions)."""
    # TPU compilers split a collective into pieces in several fusions, which
    # overlap with other work, some of it in loops. The pieces share a channel;
    # the first and the last stand outside of these loops.
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
    """Yields (innermost caller that is no fusion, computation, executions)."""
    yield caller, name, times
    for instruction in self._bodies.get(name, ()):
      opcode, text = instruction.opcode, instruction.text
      if opcode.endswith(("-done", "-update")):
        continue  # Their start has called the same computation.
      runs = times * self._trips(text) if opcode == "while" else times
      for key, callee in _CALLED.findall(text):
        if callee not in self._bodies:
          continue
        if key == "to_apply" and opcode != "call":
          continue  # The operator of a reduction.
        outer = caller if opcode == "fusion" else callee
        yield from self._runs(outer, callee, runs)
      for branches in _BRANCHES.findall(text):
        for callee in re.findall(r"[\w.\-]+", branches):
          yield from self._runs(callee, callee, times)

  def _trips(self, text: str) -> int:
    """The trip count of a loop; 1 if it depends on data.

    Loops of JAX count up from 0. Where XLA does not print the trip count, it is
    the constant in the loop's condition.
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
  """The number of devices in a group of a collective."""
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
  """Bytes that a device sends in one collective among n devices."""
  arrays = [_bytes(*array) for array in _ARRAY.findall(instruction.shape)]
  size = float(sum(arrays))
  if instruction.opcode.endswith("-start"):
    if kind == "all-gather":
      # The shape lists operands, and results that are n times larger.
      size *= n / (n + 1)
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
