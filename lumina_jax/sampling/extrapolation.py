"""Sizes beyond those of training: stretched positions, sharpened scores."""

import dataclasses
import math
from typing import Any

import jax

from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """How samples differ from those of the trained size.

  Attributes:
    rule: of the positions, a name of `rope.RULES`; "watershed" is Next-DiT's,
      "ntk_plain" Flag-DiT's; "none" keeps positions as trained.
    watershed: time, from 0 (noise) to 1 (data), at which the rule "watershed"
      changes from linear interpolation to NTK.
    proportional: whether scores of self-attention are multiplied by
      sqrt(log_base(tokens)) (Lumina-Next, section 2.1).
    trained: the trained size; None = each sample has a natural size.
  """

  rule: str
  watershed: float
  proportional: bool
  trained: TrainedSize | None

  @property
  def active(self) -> bool:
    return self.rule != "none" or self.proportional

  def stretch(self, grid: Grid, natural: Grid | None = None) -> float:
    """How many times more positions an axis has than in training.

    By areas: the ratio of sides, or for a raster, whose one axis runs through
    all patches, the ratio of areas. The number of frames does not count.

    Args:
      grid: layout of a sample.
      natural: its layout at the trained size; None = the trained square.
    """
    if self.rule == "none":
      return 1.0
    ratio = _extent(grid) / _extent(self._base(grid, natural)[0])
    below = self.trained is not None and self.trained.below
    return ratio if below else max(ratio, 1.0)

  def trained_extent(self, grid: Grid, natural: Grid | None = None) -> float:
    """Positions along an axis in training; arguments as for `stretch`."""
    if self.rule == "none":
      return 1.0
    base, _ = self._base(grid, natural)
    return float(base.num_tokens) if base.raster else _extent(base)

  def attention_scale(self, grid: Grid, natural: Grid | None = None) -> float:
    """Factor of the scores of self-attention; arguments as for `stretch`."""
    if not self.proportional:
      return 1.0
    _, tokens = self._base(grid, natural)
    return math.sqrt(math.log(max(grid.num_tokens, 1), max(tokens, 2)))

  def positions(self, stretch: Any, trained: Any = None) -> RopeScaling:
    """The rule for samples, each of its numbers an array `f32[B, N]`.

    Args:
      stretch: `f32[B, N]`, of each sample.
      trained: `f32[B, N]`, trained extents; None for rules that ignore them.
    """
    rule = RopeScaling(
      self.rule, scale=stretch, watershed=self.watershed, trained=trained
    )
    # Rows of a batch, and their rules, can then be concatenated.
    return jax.tree.map(lambda x: 0 * stretch + x, rule)

  def _base(self, grid: Grid, natural: Grid | None) -> tuple[Grid, int]:
    """Layout at the trained size, and its tokens as the original counts."""
    if natural is not None:
      return natural, natural.num_tokens
    side = self.trained.side
    shape = grid.shape[:-2] + (side,) * len(grid.shape[-2:])
    return dataclasses.replace(grid, shape=shape), self.trained.tokens


def extrapolation(options: SamplingOptions, sizes: SizeConfig) -> Extrapolation:
  """The extrapolation of a call.

  Raises:
    ValueError: if options ask for it and the trained size is unknown.
  """
  found = Extrapolation(
    options.rope_scaling,
    options.scaling_watershed,
    options.proportional_attention,
    sizes.trained,
  )
  if found.active and not sizes.known:
    raise ValueError(
      f"rope_scaling = {options.rope_scaling!r}, proportional_attention = "
      f"{options.proportional_attention}: the trained size of this network is "
      "unknown; set config.sizes.trained"
    )
  return found


def _extent(grid: Grid) -> float:
  """Patches along a side of a square of equal area; of a raster, all."""
  if grid.raster:
    return float(math.prod(grid.counts))
  sides = grid.counts[-2:]
  return math.prod(sides) ** (1 / len(sides))
