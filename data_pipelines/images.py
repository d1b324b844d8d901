"""Real pictures with captions, cropped to buckets: a source of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from data_pipelines.buckets import Buckets, Size
from data_pipelines.records import Record
from data_pipelines.source import Draw, Sample
from lumina_jax.media import crop
from lumina_jax.tokens import Grid

# Streams of random numbers, see digits.py; synthetic.py has up to 6.
BUCKET, CROP, CAPTION, LATENTS = 7, 8, 9, 10

PARTS = 4  # Steps that numbers of words are rounded up to.


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """What becomes of pictures and captions.

  Attributes:
    channels: C of pixels, 1 = grey, 3 = colours.
    choices: a picture's bucket is one of so many that fit best, each as likely.
    caption_dropout: share of draws whose caption is "".
    flip: True swaps left and right of every other draw; captions that tell
      them apart become wrong.
    max_words: S, codes of the longest caption; what is beyond is cut off.
  """

  channels: int
  choices: int
  caption_dropout: float
  flip: bool
  max_words: int

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f"channels = {self.channels}: 1 (grey) or 3 (colours)")
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f"caption_dropout {self.caption_dropout}: from 0 to 1")
    for name in ("choices", "max_words"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")


class Images:
  """Record r -> a crop of its picture, the same for the same draw.

  A record has a bucket of its own, drawn once. Records with the same choice of
  buckets may take each other's places, so that a picture is seen in several.

  Attributes:
    sizes: see `Source`.
    kinds: (buckets to choose from, words) of each record.
    own: height and width in pixels of each record's own place.
  """

  def __init__(
    self,
    records: Sequence[Record],
    buckets: Buckets,
    grid: Callable[[int, int], Grid],
    tokenize: Callable[[str], np.ndarray],
    cfg: ImagesConfig,
    seed: int,
    to_latents: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    | None = None,
    words: Callable[[str], int] | None = None,
  ):
    """Makes a source.

    Args:
      records: of `scan`.
      buckets: sizes of crops.
      grid: (height, width) in pixels -> layout of the latents.
      tokenize: caption -> codes `i32[S, K]`, or features `f32[S, E]`.
      cfg: choices and shares.
      seed: of buckets, crops and captions.
      to_latents: pixels `f32[H, W, C]` in [-1, 1] and random numbers -> latents
        `f32[h, w, c]`; None = the pixels themselves.
      words: caption -> S, for all records at once; None = of `tokenize`, which
        takes long where a language model reads them.

    Raises:
      ValueError: if there are no records, or the grid cannot lay out a bucket.
    """
    if not records:
      raise ValueError("no pictures to draw from")
    self._records, self._cfg, self._seed = records, cfg, seed
    self._tokenize, self._to_latents = tokenize, to_latents
    count = words or (lambda caption: len(tokenize(caption)))
    self.kinds: list[Hashable] = [
      (buckets.candidates(r.height, r.width, cfg.choices), room)
      for r, room in zip(records, self._rooms(count), strict=True)
    ]
    u = np.random.default_rng([BUCKET, seed]).random(len(records)).tolist()
    self.own: list[Size] = [
      choices[int(x * len(choices))]
      for x, (choices, _) in zip(u, self.kinds, strict=True)
    ]
    self._grids = {size: grid(*size) for size in set(self.own)}
    self.sizes: list[tuple[int, int, int]] = [
      (self._grids[size].num_tokens, room, 1)
      for size, (_, room) in zip(self.own, self.kinds, strict=True)
    ]

  def sample(self, draw: Draw) -> Sample:
    """A crop of the record's picture, as large as the place has it.

    Raises:
      BadRecord: if the picture cannot be read.
      ValueError: if the record cannot take that place, or its latents or words
        are not as many as promised.
    """
    x, caption = self.pixels(draw)
    if self._to_latents is not None:
      x = self._to_latents(x, self._rng(LATENTS, draw))
    grid = self._grids[self.own[draw.place]]
    text, room = self._tokenize(caption), self.sizes[draw.place][1]
    text = text[: self._cfg.max_words]
    if len(text) > room:
      raise ValueError(
        f"{self.name(draw.record)}: {len(text)} words, where the longest of "
        f"its captions was counted as {room} at the most"
      )
    return Sample(grid, grid.tokenize(x), text, caption)

  def pixels(self, draw: Draw) -> tuple[np.ndarray, str]:
    """The crop `f32[H, W, C]` in [-1, 1] and the caption of a draw.

    Raises:
      BadRecord: if the picture cannot be read.
      ValueError: if the record cannot take that place.
    """
    if self.kinds[draw.record] != self.kinds[draw.place]:
      raise ValueError(
        f"record {draw.record} cannot take the place of {draw.place}: their "
        "kinds differ"
      )
    cfg, record = self._cfg, self._records[draw.record]
    x = crop.load(
      record.path,
      self.own[draw.place],
      self._rng(CROP, draw),
      cfg.channels,
      cfg.flip,
    )
    rng = self._rng(CAPTION, draw)
    dropped = rng.random() < cfg.caption_dropout
    caption = record.captions[rng.integers(len(record.captions))]
    return x, "" if dropped else caption

  def name(self, record: int) -> str:
    return self._records[record].path

  def _rng(self, stream: int, draw: Draw) -> np.random.Generator:
    """Of epoch and record alone: a crop is the same wherever it stands."""
    key = [stream, self._seed, draw.epoch, draw.record]
    return np.random.default_rng(key)

  def _rooms(self, count: Callable[[str], int]) -> list[int]:
    """Words of each record's longest caption, rounded up."""
    longest, step = self._cfg.max_words, -(-self._cfg.max_words // PARTS)
    nothing = count("") if self._cfg.caption_dropout else 1

    def room(record: Record) -> int:
      words = max(nothing, *map(count, record.captions))
      return min(-(-words // step) * step, longest)

    return [room(record) for record in self._records]
