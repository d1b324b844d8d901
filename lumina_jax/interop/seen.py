"""The shapes of a state dict, and what is easily said about them."""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def some(shapes: Shapes) -> str:
  """The first keys, for a message."""
  keys = sorted(shapes)
  return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")


class Seen:
  """Attributes: blocks, how many there are."""

  def __init__(self, shapes: Shapes):
    self._shapes = shapes
    numbers = re.compile(r"(layers|blocks)\.(\d+)\.")
    found = [m for key in shapes if (m := numbers.match(key))]
    # How many, not the highest: a stray one shall show as unexpected.
    self.blocks = len({m[2] for m in found})
    self._prefix = found[0][1] if found else "layers"

  def __getitem__(self, key: str) -> tuple[int, ...]:
    if key not in self._shapes:
      raise ValueError(
        f"no state dict of a Lumina network: {key} is missing among "
        f"{some(self._shapes)}"
      )
    return self._shapes[key]

  def has(self, key: str) -> bool:
    return key in self._shapes

  def block(self, key: str) -> tuple[int, ...]:
    """Shape of a parameter of the first block."""
    return self[f"{self._prefix}.0.{key}"]

  def has_block(self, key: str) -> bool:
    return f"{self._prefix}.0.{key}" in self._shapes

  def count(self, key: str) -> int:
    """How many of a numbered parameter the first block has, e.g. experts."""
    numbers = range(len(self._shapes))
    return next(n for n in numbers if not self.has_block(key.format(n)))
