"""Compares the shapes of a network with the shapes in a file."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(expected: Shapes, found: Shapes) -> None:
  """Checks that two sets of tensors have the same keys and shapes.

  Raises:
    ValueError: listing their `differences`.
  """
  if lines := differences(expected, found):
    text = "\n".join(lines)
    raise ValueError(f"the tensors do not fit this network\n{text}")


def differences(expected: Shapes, found: Shapes) -> list[str]:
  """Lists every missing, unexpected and misshaped tensor, with counts.

  Keys that differ only in the number of their block share a line.
  """
  missing = [key for key in expected if key not in found]
  unexpected = [key for key in found if key not in expected]
  misshaped = [
    key
    for key in expected
    if key in found and tuple(found[key]) != tuple(expected[key])
  ]

  def both(key):
    return f"expected {tuple(expected[key])}, found {tuple(found[key])}"

  return [
    *_lines("missing", missing, lambda key: f"{tuple(expected[key])}"),
    *_lines("unexpected", unexpected, lambda key: f"{tuple(found[key])}"),
    *_lines("of another shape", misshaped, both),
  ]


def _lines(
  title: str, keys: list[str], detail: Callable[[str], str]
) -> Iterator[str]:
  if not keys:
    return
  yield f"{len(keys)} {title}:"
  groups = defaultdict(list)
  for key in keys:
    prefix, number, rest = _split(key)
    groups[prefix, rest, detail(key)].append(number)
  for (prefix, rest, shape), numbers in groups.items():
    number = "" if numbers == [""] else f"{{{_ranges(map(int, numbers))}}}"
    yield f"  {prefix}{number}{rest}: {shape}"


def _ranges(numbers: Iterable[int]) -> str:
  """0, 1, 2, 5 -> "0-2,5"."""
  runs: list[list[int]] = []
  for number in sorted(numbers):
    if runs and number == runs[-1][-1] + 1:
      runs[-1][1:] = [number]
    else:
      runs.append([number])
  return ",".join("-".join(map(str, run)) for run in runs)


def _split(key: str) -> tuple[str, str, str]:
  """("layers.", "7", ".attention.wq.weight"); other keys stay whole."""
  numbered = re.match(r"((?:layers|blocks)\.)(\d+)(\..*)", key)
  return numbered.groups() if numbered else (key, "", "")
