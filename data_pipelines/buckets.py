"""Aspect-ratio buckets: the sizes in pixels that images are cropped to."""

import functools
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # Height and width in pixels.


class Buckets:
  """Sizes that take about as many tokens as squares of given resolutions.

  A square of resolution R has n = (R / unit)^2 tokens. Its buckets are all
  w x h on the staircase from (n, 1) to (1, n), which goes one row up where
  (h + 1) w <= n and one column back elsewhere. That is the training code of
  Lumina-T2X, which has 49 buckets for 256 pixels, 97 for 512, 193 for 1024.

  Attributes:
    resolutions: R in pixels, smallest first.
  """

  def __init__(
    self, resolutions: Sequence[int], unit: int, max_aspect_ratio: float = 4.0
  ):
    """Lists the sizes.

    Args:
      resolutions: R of each square, in pixels.
      unit: sides of a token in pixels: the patch size times the factor of the
        autoencoder.
      max_aspect_ratio: largest ratio of the sides of a bucket.

    Raises:
      ValueError: if there are no resolutions, or one is not a multiple of the
        unit.
    """
    if unit < 1:
      raise ValueError(f"unit = {unit}: pixels of a token, at least 1")
    if not max_aspect_ratio >= 1:
      raise ValueError(
        f"max_aspect_ratio = {max_aspect_ratio}: a ratio of sides, at least 1"
      )
    if not resolutions or len(set(resolutions)) < len(resolutions):
      raise ValueError(
        f"resolutions {tuple(resolutions)}: name at least one, and none twice"
      )
    for side in resolutions:
      if side < unit or side % unit:
        nearest = max(unit, round(side / unit) * unit)
        raise ValueError(
          f"resolution {side} of {tuple(resolutions)} is not a positive "
          f"multiple of {unit}, the pixels of a token; use {nearest}"
        )
    self.resolutions = tuple(sorted(resolutions))
    self._sizes = {}
    for side in self.resolutions:
      steps = _staircase((side // unit) ** 2, max_aspect_ratio)
      self._sizes[side] = tuple((h * unit, w * unit) for h, w in steps)
    self._arrays = {s: np.float64(sizes).T for s, sizes in self._sizes.items()}
    # Photographs have few sizes.
    self._best = functools.lru_cache(maxsize=65_536)(self._find_best)

  def sizes(self, resolution: int) -> tuple[Size, ...]:
    """Height and width in pixels of a resolution's buckets, widest first."""
    return self._sizes[resolution]

  def candidates(
    self, height: int, width: int, count: int = 4
  ) -> tuple[Size, ...]:
    """Returns the buckets that crop the least of an image, best first.

    They belong to the largest resolution whose square has no more pixels than
    the image, so that the image is not enlarged, or else to the smallest
    resolution. The score of a bucket w x h is the share of the image W x H
    that it shows,

      min(w / W, h / H) / max(w / W, h / H).

    Args:
      height: H of the image in pixels.
      width: W of the image in pixels.
      count: largest number of buckets; a resolution may have fewer.

    Raises:
      ValueError: if the image has no pixels, or count is below 1.
    """
    if height < 1 or width < 1:
      raise ValueError(f"an image of {width} x {height} has no pixels")
    if count < 1:
      raise ValueError(f"count = {count}: buckets to choose from, at least 1")
    return self._best(height, width, count)

  def _find_best(self, height: int, width: int, count: int) -> tuple[Size, ...]:
    fitting = [side for side in self.resolutions if side**2 <= height * width]
    side = max(fitting, default=self.resolutions[0])
    scales = self._arrays[side] / np.float64([[height], [width]])
    # Every machine rounds divisions alike, so all make the same plan.
    score = np.minimum(*scales) / np.maximum(*scales)
    best = np.argsort(-score, kind="stable")[:count]
    return tuple(self._sizes[side][i] for i in best.tolist())


def _staircase(n: int, max_aspect_ratio: float) -> list[Size]:
  """All (h, w) in tokens with h w <= n that leave no room for another row."""
  sizes, h, w = [], 1, n
  while w:
    if max(h, w) <= max_aspect_ratio * min(h, w):
      sizes.append((h, w))
    if (h + 1) * w <= n:
      h += 1
    else:
      w -= 1
  return sizes
