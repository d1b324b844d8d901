"""Sizes beyond those of training: how positions stretch, how scores sharpen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from lumina_jax.backbone import rope
from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """What a network needs to draw sizes that it was not trained on.

  The trained size is one square, or each picture has a natural size of its own,
  which the methods then take.

  Attributes:
    rule: of the positions, a name of `rope.RULES`: "watershed" is Next-DiT's,
      "ntk_plain" Flag-DiT's; "none" for positions as trained.
    side: of the square that it was trained on, in what the network draws; 0 =
      there is none, every picture has a natural size.
    base_tokens: tokens of that square, as the original counts them; 0 likewise.
    watershed: time, from 0 (noise) to 1 (data), at which the rule of that name
      turns from linear interpolation to NTK.
    below: whether positions of smaller pictures are stretched as well. The
      original's Next-DiT does not, its Flag-DiT does, and so does diffusers.
    proportional: whether scores of self-attention are multiplied by
      sqrt(log_base_tokens(tokens)) (Lumina-Next, section 2.1).
  """

  rule: str
  side: int
  base_tokens: int
  watershed: float = 0.3
  below: bool = False
  proportional: bool = True

  def __post_init__(self):
    rope.check_rule(self.rule)
    if not 0 <= self.watershed <= 1:
      raise ValueError(
        f"watershed = {self.watershed}: a time from 0 (noise) to 1 (data)"
      )
    square = self.side >= 1 and self.base_tokens >= 2
    if not square and (self.side, self.base_tokens) != (0, 0):
      raise ValueError(
        f"side = {self.side} and base_tokens = {self.base_tokens}: a trained "
        "square has at least one of the first and two of the second; 0 and 0 "
        "if there is none"
      )

  def stretch(self, grid: Grid, natural: Grid | None = None) -> float:
    """How many times more positions an axis has than in training.

    By areas, the ratio of sides; of a raster, whose one axis runs through all
    patches, the ratio of areas. Frames count as they are.

    Args:
      grid: layout of a picture.
      natural: its layout at the size that the network was trained to draw it
        at; None = the trained square.

    Raises:
      ValueError: if there is neither.
    """
    if self.rule == "none":
      return 1.0
    ratio = _extent(grid) / _extent(self._trained(grid, natural)[0])
    return ratio if self.below else max(ratio, 1.0)

  def trained(self, grid: Grid, natural: Grid | None = None) -> float:
    """Positions along an axis in training; arguments as of `stretch`."""
    if self.rule == "none":
      return 1.0
    base, _ = self._trained(grid, natural)
    return float(base.num_tokens) if base.raster else _extent(base)

  def attention_scale(self, grid: Grid, natural: Grid | None = None) -> float:
    """What scores of self-attention are multiplied by; as of `stretch`."""
    if not self.proportional:
      return 1.0
    _, tokens = self._trained(grid, natural)
    return math.sqrt(math.log(max(grid.num_tokens, 1), max(tokens, 2)))

  def positions(self, stretch: Any, trained: Any = None) -> RopeScaling:
    """The rule for samples, every number of it an array `f32[B, N]`.

    Args:
      stretch: `f32[B, N]`, of each sample.
      trained: `f32[B, N]`, likewise; None for rules that do not ask.
    """
    rule = RopeScaling(
      self.rule, scale=stretch, watershed=self.watershed, trained=trained
    )
    # Rows of a batch can then be concatenated, the rule along with them.
    return jax.tree.map(lambda x: 0 * stretch + x, rule)

  def _trained(self, grid: Grid, natural: Grid | None) -> tuple[Grid, int]:
    """Layout at the trained size, and its tokens as the network counts."""
    if natural is not None:
      return natural, natural.num_tokens
    if not self.side:
      raise ValueError(
        "side = 0: without a trained square every picture needs the natural "
        "size that it would have in training"
      )
    shape = grid.shape[:-2] + (self.side,) * len(grid.shape[-2:])
    square = dataclasses.replace(grid, shape=shape)
    return square, self.base_tokens


def _extent(grid: Grid) -> float:
  """Patches along a side of a square as large; of a raster, all patches."""
  if grid.raster:
    return float(math.prod(grid.counts))
  sides = grid.counts[-2:]
  return math.prod(sides) ** (1 / len(sides))
