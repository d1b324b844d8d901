"""Canvases of real handwritten digits with captions, composed on the fly.

The digits are the 1,797 of scikit-learn (UCI Optical Recognition of Handwritten
Digits, 8x8 pixels, 17 shades). A canvas shows random digits of the training
split.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines import digit_captions
from data_pipelines.digit_captions import SIDE
from data_pipelines.source import Draw, Sample, Size, Stream
from data_pipelines.source_config import SourceConfig
from lumina_jax.files import schema
from lumina_jax.tokens import Grid

SHADES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsConfig(SourceConfig):
  """The canvases of an epoch.

  Attributes:
    canvases: (rows, columns) of digits, equally frequent.
    records_per_canvas: canvases of each size in an epoch.
    caption_dropout: share of canvases whose caption is "".
    held_out: share of the digits that is never trained on.
    origins: where positions have two axes, a canvas starts at a random origin,
      up to this many rows and columns of digits away, and its words at as many
      lines and columns. So positions beyond the largest canvas are trained, and
      larger canvases can be sampled.
  """

  canvases: tuple[tuple[int, int], ...]
  records_per_canvas: int
  caption_dropout: float
  held_out: float
  origins: tuple[int, int]

  def __post_init__(self):
    canvases = tuple(tuple(canvas) for canvas in self.canvases)
    object.__setattr__(self, "canvases", canvases)
    object.__setattr__(self, "origins", tuple(self.origins))
    schema.check_share(self, "caption_dropout")
    if not 0 < self.held_out < 1:
      raise ValueError(f"held_out = {self.held_out}: must lie between 0 and 1")
    if len(self.origins) != 2 or min(self.origins) < 0:
      raise ValueError(f"origins {self.origins}: (rows, columns), at least 0")

  def make_source(self, channels, grid, tokenize, seed) -> DigitCanvases:
    """See `SourceConfig.make_source`; the source of the training split."""
    train, _ = split(self.held_out)
    return DigitCanvases(self, train, grid, tokenize, seed)


class Split(NamedTuple):
  """Digits `f32[M, 8, 8]` in [-1, 1] and their labels `i32[M]`."""

  images: np.ndarray
  labels: np.ndarray


@functools.cache
def split(held_out: float) -> tuple[Split, Split]:
  """Returns the digits to train on and those held out, always the same ones."""
  from sklearn import datasets  # Takes a second to import.

  digits = datasets.load_digits()
  images = (digits.images / (SHADES / 2) - 1).astype(np.float32)
  labels = digits.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(images))
  cut = round(len(order) * held_out)
  train, test = order[cut:], order[:cut]
  return Split(images[train], labels[train]), Split(images[test], labels[test])


class DigitCanvases:
  """A source of canvases; see `Source`."""

  def __init__(
    self,
    cfg: DigitsConfig,
    digits: Split,
    grid: Callable[[int, int], Grid],
    tokenize: Callable[..., np.ndarray],
    seed: int,
  ):
    """Makes a source.

    Args:
      cfg: canvases and budgets.
      digits: digits to compose canvases of.
      grid: height and width in pixels -> layout, e.g. `ModelConfig.grid`.
      tokenize: caption and origin -> codes `i32[S, K]`; the origin, a line and
        a column, is optional.
      seed: seed of digits and captions.
    """
    self._cfg, self._digits, self._seed = cfg, digits, seed
    self._grid, self._tokenize = grid, tokenize
    self._of_label = [np.nonzero(digits.labels == d)[0] for d in range(10)]

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """Tokens, words and samples (1) that each record takes at most."""
    sizes = []
    for record in range(len(self._cfg.canvases) * self._cfg.records_per_canvas):
      rows, columns = self._canvas(record)
      grid = self._grid(rows * SIDE, columns * SIDE)
      longest = np.full((rows, columns), digit_captions.LONGEST)
      caption = self._caption(record, longest)
      sizes.append((grid.num_tokens, len(self._tokenize(caption)), 1))
    return sizes

  @property
  def kinds(self) -> list[Size]:
    """Records of equal size may swap slots."""
    return self.sizes

  def name(self, record: int) -> str:
    """Returns the name of a record, for messages."""
    return f"canvas {record}"

  def sample(self, draw: Draw) -> Sample:
    """Composes the canvas of a record; every epoch has new digits."""
    epoch, record, _ = draw
    rng = np.random.default_rng([Stream.DIGITS, self._seed, epoch, record])
    labels = rng.integers(10, size=self._canvas(record))
    dropped = rng.random() < self._cfg.caption_dropout
    caption = "" if dropped else self._caption(record, labels)
    pixels = self.compose(labels, rng)
    grid, origin = self._grid(*pixels.shape[:2]), (0, 0)
    if not grid.raster:
      origin = rng.integers(np.asarray(self._cfg.origins) + 1)
      cells = origin * SIDE // np.asarray(grid.patch)
      grid = dataclasses.replace(grid, origin=tuple(cells.tolist()))
    codes = self._tokenize(caption, origin)
    return Sample(grid, grid.tokenize(pixels), codes, caption)

  def compose(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels `i32[rows, columns]` -> a canvas `f32[8 rows, 8 columns, 1]`."""
    rows = [
      np.hstack(
        [self._digits.images[rng.choice(self._of_label[d])] for d in row]
      )
      for row in labels
    ]
    return np.vstack(rows)[..., None]

  def _canvas(self, record: int) -> tuple[int, int]:
    return self._cfg.canvases[record // self._cfg.records_per_canvas]

  def _caption(self, record: int, labels: np.ndarray) -> str:
    """A record keeps its phrase, so that its number of words is known."""
    rng = np.random.default_rng([Stream.DIGIT_CAPTION, self._seed, record])
    return digit_captions.caption(labels, rng)
