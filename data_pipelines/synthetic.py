"""Synthetic latents: a pattern for each class under noise, made on the fly.

They stand in for encoded media where there are none: of any size and rank, and
with something to learn, since a prompt says which pattern lies under the noise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from data_pipelines.source import Draw, Sample
from lumina_jax.tokens import Grid

WAVES = 4  # cosines of a pattern, for each channel
CYCLES = 2  # the most that a wave turns along an axis

PATTERN, DRAW = 5, 6  # streams of random numbers, see digits.py


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Which latents an epoch holds.

  Attributes:
    sizes: extents of the latents, e.g. (height, width), equally frequent.
    records_per_size: latents of each size in an epoch.
    classes: patterns, equally frequent.
    caption: the prompt of a class, "{}" for its number: "pattern {}" for a
      network that reads text, "{}" for one that is conditioned on classes.
    condition_dropout: share of latents whose prompt is "".
    signal: share of the pattern in the variance; the rest is noise.
    row_tokens: token budget L of a row.
    row_words: text budget S of a row; a class is one word.
    row_samples: latents N of a row at the most.
  """

  sizes: tuple[tuple[int, ...], ...]
  records_per_size: int
  classes: int
  caption: str
  condition_dropout: float
  signal: float
  row_tokens: int
  row_words: int
  row_samples: int

  def __post_init__(self):
    sizes = tuple(tuple(size) for size in self.sizes)
    object.__setattr__(self, "sizes", sizes)
    if not sizes or len({len(size) for size in sizes}) > 1:
      raise ValueError(f"sizes {sizes}: at least one, all of as many axes")
    for name in ("records_per_size", "classes"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    for name in ("condition_dropout", "signal"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} {getattr(self, name)}: from 0 to 1")
    if "{}" not in self.caption:
      raise ValueError(f"caption {self.caption!r} needs a {{}} for the class")

  @property
  def budget(self) -> tuple[int, int, int]:
    return self.row_tokens, self.row_words, self.row_samples


class SyntheticLatents:
  """Record r of an epoch -> latents, the same whenever they are asked for."""

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
      channels: C of the latents.
      grid: extents -> layout, e.g. `ModelConfig.grid`.
      tokenize: prompt -> codes, e.g. `Network.tokenize`.
      seed: of classes and noise; the patterns are the same for every seed.
    """
    self._cfg, self._channels, self._seed = cfg, channels, seed
    self._grids = [grid(*size) for size in cfg.sizes]
    self._tokenize = tokenize

  @functools.cached_property
  def sizes(self) -> list[tuple[int, int, int]]:
    """(tokens, words, 1) that each record takes at the most, in any epoch.

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
  def kinds(self) -> list[tuple[int, int, int]]:
    return self.sizes

  def name(self, record: int) -> str:
    return f"latents {record}"

  def sample(self, draw: Draw) -> Sample:
    """The latents of a record; class and noise are new in each epoch."""
    cfg, (epoch, record, _) = self._cfg, draw
    rng = np.random.default_rng([DRAW, self._seed, epoch, record])
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
  over u in the unit cube: a colour b and K waves of whole frequencies f and
  phases p that belong to the class. So it is the same picture at every size.
  """
  rng = np.random.default_rng([PATTERN, label])
  waves = (WAVES, channels)
  colour = rng.standard_normal(channels)
  f = rng.integers(-CYCLES, CYCLES + 1, size=(len(shape), *waves))
  f[0] = np.where(np.any(f, axis=0), f[0], 1)  # The colour alone is constant.
  p = rng.random(waves)
  places = [(np.arange(size) + 0.5) / size for size in shape]
  u = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
  turns = np.tensordot(u, f, axes=1) + p
  x = np.cos(2 * np.pi * turns).sum(axis=-2) / WAVES**0.5
  return (0.5**0.5 * colour + x).astype(np.float32)
