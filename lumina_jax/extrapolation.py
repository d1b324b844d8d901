"""Sizes beyond those of training: how positions stretch, how scores sharpen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lumina_jax.backbone.rope import Rescale, Watershed
from lumina_jax.tokens import Grid

RULES = ("watershed", "ntk", "none")


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """What a network needs to draw sizes that it was not trained on.

  Attributes:
    rule: of the positions: "watershed", Next-DiT's time-aware rule by the ratio
      of sides; "ntk", Flag-DiT's by the ratio of areas; "none" for positions as
      trained.
    side: of the square that it was trained on, in what the network draws.
    base_tokens: tokens of that square, as the original counts them.
    watershed: time, from 0 (noise) to 1 (data), at which the first rule turns
      from linear interpolation to NTK.
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
    if self.rule not in RULES:
      raise ValueError(f"rule {self.rule!r}: use one of {', '.join(RULES)}")
    if not 0 <= self.watershed <= 1:
      raise ValueError(
        f"watershed = {self.watershed}: a time from 0 (noise) to 1 (data)"
      )
    if self.side < 1 or self.base_tokens < 2:
      raise ValueError(
        f"side = {self.side} and base_tokens = {self.base_tokens}: a trained "
        "square has at least one of the first and two of the second"
      )

  def stretch(self, grid: Grid) -> float:
    """Ratio of a picture's side to the trained one, by their areas."""
    if self.rule == "none":
      return 1.0
    ratio = math.sqrt(math.prod(grid.shape)) / self.side
    return ratio if self.below else max(ratio, 1.0)

  def attention_scale(self, grid: Grid) -> float:
    """What scores of self-attention are multiplied by."""
    if not self.proportional:
      return 1.0
    return math.sqrt(math.log(max(grid.num_tokens, 1), self.base_tokens))

  def positions(self, stretch: Any) -> Rescale | Watershed:
    """The rule for samples stretched by `f32[B, N]`, as traced data."""
    one = stretch * 0 + 1
    if self.rule == "ntk":
      return Rescale(linear=one, ntk=stretch**2)
    return Watershed(scale=stretch, at=one * self.watershed)
