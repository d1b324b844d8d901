"""Synthetic latents: the pattern of a class under noise, made on the fly.

They replace encoded media in trials. They have any size and rank, and something
to learn: the prompt names the pattern under the noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from data_pipelines.source import Draw, Sample, Size, Stream
from data_pipelines.source_config import SourceConfig
from lumina_jax.files import schema
from lumina_jax.tokens import Grid

WAVES = 4  # Cosines of a pattern, per channel.
CYCLES = 2  # Largest number of periods along an axis.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig(SourceConfig):
  """The latents of an epoch; a class is one word of the text budget.

  Attributes:
    sizes: extents of the latents, e.g. (height, width), equally frequent.
    records_per_size: latents of each size in an epoch.
    classes: number of patterns, equally frequent.
    caption: prompt of a class, "{}" for its number: "pattern {}" for a network
      that reads text, "{}" for one that is conditioned on classes.
    condition_dropout: share of latents whose prompt is "".
    signal: share of the pattern in the variance; the rest is noise.
  """

  sizes: tuple[tuple[int, ...], ...]
  records_per_size: int
  classes: int
  caption: str
  condition_dropout: float
  signal: float

  def __post_init__(self):
    sizes = tuple(tuple(size) for size in self.sizes)
    object.__setattr__(self, "sizes", sizes)
    if not sizes or len({len(size) for size in sizes}) > 1:
      raise ValueError(f"sizes {sizes}: at least one, all of as many axes")
    schema.check_positive(self, "records_per_size", "classes")
    schema.check_share(self, "condition_dropout", "signal")
    if "{}" not in self.caption:
      raise ValueError(f"caption {self.caption!r} needs a {{}} for the class")

  def make_source(self, channels, grid, tokenize, seed) -> SyntheticLatents:
    """See `SourceConfig.make_source`."""
    return SyntheticLatents(self, channels, grid, tokenize, seed)


class SyntheticLatents:
  """A source of latents; see `Source`."""

  def __init__(
    self,
    cfg: SyntheticConfig,
    channels: int,
    grid: Callable[..., Grid],
    tokenize: Callable[[str], np.ndarray],
    seed: int,
  ):
    """Makes a source.

    Args:
      cfg: sizes, classes and budgets.
      channels: channels C of the latents.
      grid: extents -> layout, e.g. `ModelConfig.grid`.
      tokenize: prompt -> codes, e.g. `Network.tokenize`.
      seed: seed of classes and noise; patterns are the same for every seed.
    """
    self._cfg, self._channels, self._seed = cfg, channels, seed
    self._grids = [grid(*size) for size in cfg.sizes]
    self._tokenize = tokenize

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """Tokens, words and samples (1) that each record takes at most.

    Raises:
      ValueError: if the network does not know one of the classes.
    """
    cfg = self._cfg
    prompts = [cfg.caption.format(label) for label in range(cfg.classes)]
    words = max(len(self._tokenize(prompt)) for prompt in ["", *prompts])
    return [
      (grid.num_tokens, words, 1)
      for grid in self._grids
      for _ in range(cfg.records_per_size)
    ]

  @property
  def kinds(self) -> list[Size]:
    """Records of equal size may swap slots."""
    return self.sizes

  def name(self, record: int) -> str:
    """Returns the name of a record, for messages."""
    return f"latents {record}"

  def sample(self, draw: Draw) -> Sample:
    """Makes the latents of a record; every epoch has new classes and noise."""
    cfg, (epoch, record, _) = self._cfg, draw
    rng = np.random.default_rng([Stream.SYNTHETIC, self._seed, epoch, record])
    label = int(rng.integers(cfg.classes))
    dropped = rng.random() < cfg.condition_dropout
    grid = self._grids[record // cfg.records_per_size]
    clean = pattern(label, grid.shape, self._channels)
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    x = cfg.signal**0.5 * clean + (1 - cfg.signal) ** 0.5 * noise
    prompt = "" if dropped else cfg.caption.format(label)
    return Sample(grid, grid.tokenize(x), self._tokenize(prompt), prompt)


def pattern(label: int, shape: tuple[int, ...], channels: int) -> np.ndarray:
  """The pattern of a class: `f32[*shape, C]`, smooth, of about unit variance.

  x_c(u) = sqrt(1/2) b_c + sqrt(1/K) sum_k cos(2 pi (f_kc . u + p_kc))
  over u in the unit cube: a mean b and K waves of whole frequencies f and
  phases p, all of which belong to the class. So the pattern looks the same at
  every size.
  """
  rng = np.random.default_rng([Stream.PATTERN, label])
  waves = (WAVES, channels)
  mean = rng.standard_normal(channels)
  f = rng.integers(-CYCLES, CYCLES + 1, size=(len(shape), *waves))
  f[0] = np.where(np.any(f, axis=0), f[0], 1)  # Only the mean is constant.
  p = rng.random(waves)
  axes = [(np.arange(size) + 0.5) / size for size in shape]
  u = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
  turns = np.tensordot(u, f, axes=1) + p
  x = np.cos(2 * np.pi * turns).sum(axis=-2) / WAVES**0.5
  return (0.5**0.5 * mean + x).astype(np.float32)
