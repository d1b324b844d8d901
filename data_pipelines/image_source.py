"""Images with captions, cropped to buckets: a source of samples."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from data_pipelines import image_loader
from data_pipelines.buckets import Buckets
from data_pipelines.buckets import Size as PixelSize
from data_pipelines.records import Record
from data_pipelines.source import Draw, Sample, Size, Stream
from lumina_jax.files import schema
from lumina_jax.tokens import Grid

WORD_STEPS = 4  # Numbers of words are rounded up to quarters of the largest.

Tokenize = Callable[[str], np.ndarray]
ToLatents = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageSourceConfig:
  """How images and captions become samples.

  Attributes:
    channels: channels C of pixels, 1 = gray, 3 = RGB.
    bucket_choices: an image gets one of this many buckets that fit it best,
      all equally likely.
    caption_dropout: share of draws whose caption is "".
    flip: True mirrors every other draw. Captions that mention left and right
      become wrong.
    max_words: largest number S of codes of a caption; the rest is cut off.
  """

  channels: int
  bucket_choices: int
  caption_dropout: float
  flip: bool
  max_words: int

  def __post_init__(self):
    if self.channels not in (1, 3):
      raise ValueError(f"channels = {self.channels}: use 1 (gray) or 3 (RGB)")
    schema.check_share(self, "caption_dropout")
    schema.check_positive(self, "bucket_choices", "max_words")


class ImageSource:
  """A source of crops; see `Source`.

  Each record has a bucket of its own, chosen once. Records with the same choice
  of buckets may swap slots, so an image is cropped to several shapes.

  Attributes:
    sizes: tokens, words and samples (1) of each record's own slot.
    kinds: buckets to choose from, and number of words, of each record.
    buckets: height and width in pixels of each record's own slot.
  """

  def __init__(
    self,
    records: Sequence[Record],
    buckets: Buckets,
    grid: Callable[[int, int], Grid],
    tokenize: Tokenize,
    cfg: ImageSourceConfig,
    seed: int,
    to_latents: ToLatents | None = None,
    count_words: Callable[[str], int] | None = None,
  ):
    """Makes a source.

    Args:
      records: images with captions, from `scan`.
      buckets: sizes of crops.
      grid: height and width in pixels -> layout of the latents.
      tokenize: caption -> codes `i32[S, K]`, or features `f32[S, E]`.
      cfg: crops and captions.
      seed: seed of buckets, crops and captions.
      to_latents: pixels `f32[H, W, C]` in [-1, 1] and random numbers -> latents
        `f32[h, w, c]`; None = the pixels themselves.
      count_words: caption -> S, called for all captions at the start; None =
        by `tokenize`, which is slow where a language model encodes them.

    Raises:
      ValueError: if there are no records, or the grid does not fit a bucket.
    """
    if not records:
      raise ValueError("no images to draw from")
    self._records, self._cfg, self._seed = records, cfg, seed
    self._tokenize, self._to_latents = tokenize, to_latents
    count = count_words or (lambda caption: len(tokenize(caption)))
    self.kinds: list[Hashable] = [
      (buckets.candidates(r.height, r.width, cfg.bucket_choices), words)
      for r, words in zip(records, self._max_words(count), strict=True)
    ]
    rng = np.random.default_rng([Stream.IMAGE_BUCKET, seed])
    self.buckets: list[PixelSize] = [
      choices[int(x * len(choices))]
      for x, (choices, _) in zip(
        rng.random(len(records)).tolist(), self.kinds, strict=True
      )
    ]
    self._grids = {size: grid(*size) for size in set(self.buckets)}
    self.sizes: list[Size] = [
      (self._grids[size].num_tokens, words, 1)
      for size, (_, words) in zip(self.buckets, self.kinds, strict=True)
    ]

  def sample(self, draw: Draw) -> Sample:
    """Crops the image of a record to the size of the slot.

    Raises:
      BadRecord: if the image cannot be read.
      ValueError: if the record does not fit the slot, or has more words than
        were counted.
    """
    x, caption = self.pixels(draw)
    if self._to_latents is not None:
      x = self._to_latents(x, self._rng(Stream.IMAGE_LATENTS, draw))
    grid = self._grids[self.buckets[draw.slot]]
    text, most = self._tokenize(caption), self.sizes[draw.slot][1]
    text = text[: self._cfg.max_words]
    if len(text) > most:
      raise ValueError(
        f"{self.name(draw.record)}: {len(text)} words, but the longest of its "
        f"captions was counted as at most {most}"
      )
    return Sample(grid, grid.tokenize(x), text, caption)

  def pixels(self, draw: Draw) -> tuple[np.ndarray, str]:
    """Returns the crop `f32[H, W, C]` in [-1, 1] and the caption of a draw.

    Raises:
      BadRecord: if the image cannot be read.
      ValueError: if the record does not fit the slot.
    """
    if self.kinds[draw.record] != self.kinds[draw.slot]:
      raise ValueError(
        f"record {draw.record} does not fit the slot of {draw.slot}: their "
        "kinds differ"
      )
    cfg, record = self._cfg, self._records[draw.record]
    x = image_loader.load_crop(
      record.path,
      self.buckets[draw.slot],
      self._rng(Stream.IMAGE_CROP, draw),
      cfg.channels,
      cfg.flip,
    )
    rng = self._rng(Stream.IMAGE_CAPTION, draw)
    dropped = rng.random() < cfg.caption_dropout
    caption = record.captions[rng.integers(len(record.captions))]
    return x, "" if dropped else caption

  def name(self, record: int) -> str:
    """Returns the path of a record, for messages."""
    return self._records[record].path

  def _rng(self, stream: Stream, draw: Draw) -> np.random.Generator:
    """Depends on epoch and record alone: crops are the same in every slot."""
    key = [stream, self._seed, draw.epoch, draw.record]
    return np.random.default_rng(key)

  def _max_words(self, count: Callable[[str], int]) -> list[int]:
    """Words of each record's longest caption, rounded up."""
    largest = self._cfg.max_words
    step = -(-largest // WORD_STEPS)
    empty = count("") if self._cfg.caption_dropout else 1
    words = [max(empty, *map(count, r.captions)) for r in self._records]
    return [min(-(-number // step) * step, largest) for number in words]
