"""Buckets: the heights and widths in pixels that pictures are cropped to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # height and width in pixels


class Buckets:
  """Sizes that take about as many tokens as squares of some sides.

  Of a side S, in tokens n = (S / unit)^2: every w x h on the staircase that
  goes from (n, 1) to (1, n), one row up where (h + 1) w <= n and else one
  column back (the training code of Lumina-T2X, which has 49 of them for 256
  pixels, 97 for 512 and 193 for 1024).

  Attributes:
    sides: S in pixels, smallest first.
  """

  def __init__(self, sides: Sequence[int], unit: int, longest: float = 4.0):
    """Lists the sizes.

    Args:
      sides: S of each square, in pixels.
      unit: pixels of a token, in height and width: the patch times what the
        autoencoder shrinks by.
      longest: the most that one side of a bucket is of the other.

    Raises:
      ValueError: if there is no side, or one is no multiple of the unit.
    """
    if unit < 1:
      raise ValueError(f"unit = {unit}: pixels of a token, from 1")
    if not longest >= 1:
      raise ValueError(f"longest = {longest}: a ratio of sides, from 1")
    if not sides or len(set(sides)) < len(sides):
      raise ValueError(f"sides {tuple(sides)}: at least one, none twice")
    for side in sides:
      if side < unit or side % unit:
        near = max(unit, round(side / unit) * unit)
        raise ValueError(
          f"side {side} of {tuple(sides)} is not a positive multiple of "
          f"{unit}, the pixels of a token; the nearest that is: {near}"
        )
    self.sides = tuple(sorted(sides))
    self._sizes = {
      side: tuple((h * unit, w * unit) for h, w in _staircase(n, longest))
      for side in self.sides
      for n in [(side // unit) ** 2]
    }
    self._sides = {s: np.float64(sizes).T for s, sizes in self._sizes.items()}
    # Photographs come in few sizes.
    self._best = functools.lru_cache(maxsize=65_536)(self._candidates)

  def of(self, side: int) -> tuple[Size, ...]:
    """(height, width) in pixels of a side's buckets, widest first."""
    return self._sizes[side]

  def candidates(
    self, height: int, width: int, count: int = 4
  ) -> tuple[Size, ...]:
    """The buckets that lose least of a picture, best first.

    They are of the largest side whose square has no more pixels than the
    picture, so that it is not enlarged; else of the smallest. A bucket's score
    is the share of the picture that it shows,

      min(w / W, h / H) / max(w / W, h / H).

    Args:
      height: H of the picture in pixels.
      width: W.
      count: buckets at the most; a side may have fewer.

    Raises:
      ValueError: if the picture has no pixels, or count is below 1.
    """
    if height < 1 or width < 1:
      raise ValueError(f"a picture of {width} x {height}: no pixels")
    if count < 1:
      raise ValueError(f"count = {count}: buckets to choose from, at least 1")
    return self._best(height, width, count)

  def _candidates(self, height: int, width: int, count: int):
    within = [side for side in self.sides if side**2 <= height * width]
    side = max(within, default=self.sides[0])
    sizes = self._sizes[side]
    scales = self._sides[side] / np.float64([[height], [width]])
    # Division alone, which every machine rounds alike: so plans agree.
    score = np.minimum(*scales) / np.maximum(*scales)
    best = np.argsort(-score, kind="stable")[:count]
    return tuple(sizes[i] for i in best.tolist())


def _staircase(n: int, longest: float) -> list[Size]:
  """(h, w) in tokens, h w <= n, that leave no room for another row."""
  found, h, w = [], 1, n
  while w:
    if max(h, w) <= longest * min(h, w):
      found.append((h, w))
    if (h + 1) * w <= n:
      h += 1
    else:
      w -= 1
  return found
