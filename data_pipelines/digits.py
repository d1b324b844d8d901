"""Canvases of real handwritten digits with captions, made on the fly.

The digits are the 1,797 of scikit-learn (UCI Optical Recognition of Handwritten
Digits, 8x8 pixels, 17 shades); every canvas is composed of digits drawn at
random from the training split.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines import captions
from data_pipelines.captions import SIDE
from data_pipelines.source import Draw, Sample
from lumina_jax.tokens import Grid

SHADES = 16

# Streams of random numbers: numpy pads seeds with zeros, so that seeds of other
# lengths would meet. plan.py has the first two.
DIGITS, PHRASES = 3, 4


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
  """Which canvases an epoch holds.

  Attributes:
    canvases: (rows, columns) of digits, each equally frequent.
    records_per_canvas: canvases of each size in an epoch.
    caption_dropout: share of canvases whose caption is "".
    held_out: share of the digits never trained on.
    origins: where positions have two axes, a canvas begins up to this many rows
      and columns of digits from the origin, drawn at random, and its words as
      many lines and columns. So places beyond the largest canvas are trained,
      and larger canvases can be asked for.
    row_tokens: token budget L of a row.
    row_words: text budget S of a row.
    row_samples: canvases N of a row at the most.
  """

  canvases: tuple[tuple[int, int], ...]
  records_per_canvas: int
  caption_dropout: float
  held_out: float
  origins: tuple[int, int]
  row_tokens: int
  row_words: int
  row_samples: int

  def __post_init__(self):
    canvases = tuple(tuple(canvas) for canvas in self.canvases)
    object.__setattr__(self, "canvases", canvases)
    object.__setattr__(self, "origins", tuple(self.origins))
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f"caption_dropout {self.caption_dropout}: from 0 to 1")
    if not 0 < self.held_out < 1:
      raise ValueError(f"held_out {self.held_out}: between 0 and 1")
    if len(self.origins) != 2 or min(self.origins) < 0:
      raise ValueError(f"origins {self.origins}: (rows, columns), from 0")

  @property
  def budget(self) -> tuple[int, int, int]:
    return self.row_tokens, self.row_words, self.row_samples


class Split(NamedTuple):
  """Digits `f32[M, 8, 8]` in [-1, 1] and their labels `i32[M]`."""

  images: np.ndarray
  labels: np.ndarray


@functools.cache
def split(held_out: float) -> tuple[Split, Split]:
  """The digits (to train on, held out), always cut in the same way."""
  from sklearn import datasets  # Takes a second to import.

  digits = datasets.load_digits()
  images = (digits.images / (SHADES / 2) - 1).astype(np.float32)
  labels = digits.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(images))
  cut = round(len(order) * held_out)
  kept, out = order[cut:], order[:cut]
  return Split(images[kept], labels[kept]), Split(images[out], labels[out])


class DigitCanvases:
  """Record r of an epoch -> a canvas, the same whenever it is asked for."""

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
      digits: what to draw from.
      grid: (height, width) in pixels -> layout, e.g. `ModelConfig.grid`.
      tokenize: (caption, origin) -> codes of the text encoder; the origin, a
        line and a column, may be left out.
      seed: of digits and captions.
    """
    self._cfg, self._digits, self._seed = cfg, digits, seed
    self._grid, self._tokenize = grid, tokenize
    self._of_label = [np.nonzero(digits.labels == d)[0] for d in range(10)]

  @functools.cached_property
  def sizes(self) -> list[tuple[int, int, int]]:
    """(tokens, words, 1) that each record takes at the most, in any epoch."""
    sizes = []
    for record in range(len(self._cfg.canvases) * self._cfg.records_per_canvas):
      rows, columns = self._canvas(record)
      grid = self._grid(rows * SIDE, columns * SIDE)
      longest = np.full((rows, columns), captions.LONGEST)
      caption = self._caption(record, longest)
      sizes.append((grid.num_tokens, len(self._tokenize(caption)), 1))
    return sizes

  @property
  def kinds(self) -> list[tuple[int, int, int]]:
    return self.sizes

  def name(self, record: int) -> str:
    return f"canvas {record}"

  def sample(self, draw: Draw) -> Sample:
    """The canvas of a record; its digits are new in each epoch."""
    epoch, record, _ = draw
    rng = np.random.default_rng([DIGITS, self._seed, epoch, record])
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

  def _canvas(self, record: int) -> tuple[int, int]:
    return self._cfg.canvases[record // self._cfg.records_per_canvas]

  def _caption(self, record: int, labels: np.ndarray) -> str:
    """A record keeps its phrasing, so that its number of words is known."""
    rng = np.random.default_rng([PHRASES, self._seed, record])
    return captions.phrase(labels, rng)

  def compose(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels `i32[rows, columns]` -> a canvas `f32[8 rows, 8 columns, 1]`."""
    rows = [
      np.hstack(
        [self._digits.images[rng.choice(self._of_label[d])] for d in row]
      )
      for row in labels
    ]
    return np.vstack(rows)[..., None]
