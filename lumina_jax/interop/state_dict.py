"""The shapes of a state dict, with access by block."""

import re

from lumina_jax.interop.shapes import Shapes


class StateDictShapes:
  """Shapes of a Lumina state dict by key.

  Attributes:
    blocks: Number of blocks.
  """

  def __init__(self, shapes: Shapes):
    self._shapes = shapes
    numbers = re.compile(r"(layers|blocks)\.(\d+)\.")
    found = [m for key in shapes if (m := numbers.match(key))]
    # Counted: a stray block with a high number is reported as unexpected.
    self.blocks = len({m[2] for m in found})
    self._prefix = found[0][1] if found else "layers"

  def __getitem__(self, key: str) -> tuple[int, ...]:
    if key not in self._shapes:
      raise ValueError(
        f"not the state dict of a Lumina network: {key} is missing; the keys "
        f"are {self.some_keys()}"
      )
    return self._shapes[key]

  def __contains__(self, key: str) -> bool:
    return key in self._shapes

  def block(self, key: str) -> tuple[int, ...]:
    """Shape of a parameter of the first block."""
    return self[f"{self._prefix}.0.{key}"]

  def has_block(self, key: str) -> bool:
    """Whether the first block has a parameter."""
    return f"{self._prefix}.0.{key}" in self._shapes

  def count(self, key: str) -> int:
    """How many of a numbered parameter the first block has, e.g. experts."""
    numbers = range(len(self._shapes))
    return next(n for n in numbers if not self.has_block(key.format(n)))

  def some_keys(self) -> str:
    """The first keys, for messages."""
    keys = sorted(self._shapes)
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
