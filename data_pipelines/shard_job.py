"""The content of each shard: samples loaded, encoded and put in order.

A shard depends on its own records alone: its batches begin and end with it, and
their composition depends on the order of records. So it has the same bytes
whoever writes it, and whatever was written before. Only last bits of latents
may differ where XLA chooses kernels by timing them, as it does for GPUs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.shard_folder import BadRecordInfo
from data_pipelines.shard_record import ShardRecord, to_bytes
from data_pipelines.source import BadRecord, Draw
from data_pipelines.threads import map_ahead
from lumina_jax.files import schema

# A batch of a rare size is encoded before it is full once this many batches'
# worth of records wait for it: they fit in memory, and few batches are partial.
MAX_WAITING = 32

# Samples in values, `f32[B, *axes, C]` -> mean and standard deviation of their
# latents, `f32[B, *axes, C]` each.
Moments = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Captions -> features `bf16[S, E]` each.
Features = Callable[[Sequence[str]], list[np.ndarray]]


class PixelSource(Protocol):
  """Samples by draw, not encoded, such as `image_source.ImageSource`."""

  def pixels(self, draw: Draw) -> tuple[np.ndarray, str]:
    """Returns values `f32[*axes, C]` in [-1, 1] and a caption.

    Raises:
      BadRecord: if the record cannot be read.
    """

  def name(self, record: int) -> str:
    """Returns the name of a record."""


class Loaded(NamedTuple):
  """A sample `f32[*axes, C]` and all its captions."""

  draw: Draw
  pixels: np.ndarray
  captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardJob:
  """Samples to be written into shards, epoch after epoch.

  Attributes:
    sources: a source for each epoch, all of the same records.
    captions: captions of each record.
    records_per_shard: records of a shard; the last one has the rest.
    moments: encodes samples; None = pixels are stored.
    features: encodes captions; None = text is stored.
    batch_size: samples that are encoded at once.
    threads: threads that load samples.
    root: prefix of names, which records leave out.
  """

  sources: Sequence[PixelSource]
  captions: Sequence[tuple[str, ...]]
  records_per_shard: int = 1000
  moments: Moments | None = None
  features: Features | None = None
  batch_size: int = 8
  threads: int = 4
  root: str = ""

  def __post_init__(self):
    schema.check_positive(self, "records_per_shard", "batch_size", "threads")
    if not self.sources or not self.captions:
      raise ValueError("no records to encode")

  @property
  def total(self) -> int:
    """Number of records of all epochs."""
    return len(self.sources) * len(self.captions)

  @property
  def shards(self) -> int:
    """Number of shards."""
    return -(-self.total // self.records_per_shard)

  def draws(self, shard: int) -> list[Draw]:
    """Draws of a shard, including bad ones."""
    start = shard * self.records_per_shard
    stop = min(start + self.records_per_shard, self.total)
    pairs = (divmod(k, len(self.captions)) for k in range(start, stop))
    return [Draw(epoch, record, record) for epoch, record in pairs]

  def records(self, shard: int) -> Iterator[ShardRecord | BadRecordInfo]:
    """Yields the records of a shard in order; encodes equal sizes in batches.

    At most MAX_WAITING * batch_size records are held at a time, besides those
    that threads load ahead.
    """
    waiting: dict[tuple[int, ...], dict[int, Loaded]] = {}
    done: dict[int, ShardRecord | BadRecordInfo] = {}
    following = 0
    loaded = map_ahead(self._load, self.draws(shard), self.threads)
    for place, one in enumerate(loaded):
      if isinstance(one, BadRecordInfo):
        done[place] = one
      else:
        batch = waiting.setdefault(one.pixels.shape, {})
        batch[place] = one
        if len(batch) == self.batch_size:
          done |= self._encode(waiting.pop(one.pixels.shape))
      if place - following >= MAX_WAITING * self.batch_size - 1:
        done |= self._encode_batch_with(following, waiting)
      while following in done:
        yield done.pop(following)
        following += 1
    for batch in waiting.values():
      done |= self._encode(batch)
    for place in sorted(done):
      yield done[place]

  def _encode_batch_with(
    self, place: int, waiting: dict[tuple[int, ...], dict[int, Loaded]]
  ) -> dict[int, ShardRecord | BadRecordInfo]:
    """Encodes the batch in which a record waits, if any, though not full."""
    for shape, batch in waiting.items():
      if place in batch:
        return self._encode(waiting.pop(shape))
    return {}

  def _load(self, draw: Draw) -> Loaded | BadRecordInfo:
    captions = self.captions[draw.record]
    try:
      pixels, _ = self.sources[draw.epoch].pixels(draw)
      for caption in captions:
        caption.encode()
    except (BadRecord, UnicodeEncodeError) as error:
      name = self._name(draw.record)
      reason = str(error).removeprefix(self.root).removeprefix(f"{name}: ")
      return BadRecordInfo(name, reason)
    return Loaded(draw, pixels, captions)

  def _encode(
    self, batch: dict[int, Loaded]
  ) -> dict[int, ShardRecord | BadRecordInfo]:
    """Encodes samples of one size; keys are their places in the shard."""
    pixels = np.stack([one.pixels for one in batch.values()])
    if self.moments is None:
      arrays = [{"pixels": to_bytes(x)} for x in pixels]
    else:
      with np.errstate(over="ignore"):
        pair = [x.astype(np.float16) for x in self.moments(pixels)]
      arrays = [{"mean": m, "std": s} for m, s in zip(*pair, strict=True)]
    texts = self._encode_captions([one.captions for one in batch.values()])
    return {
      place: self._record(one, values, features)
      for (place, one), values, features in zip(
        batch.items(), arrays, texts, strict=True
      )
    }

  def _encode_captions(
    self, captions: list[tuple[str, ...]]
  ) -> list[tuple[np.ndarray, ...]]:
    if self.features is None:
      return [()] * len(captions)
    features = self.features([text for texts in captions for text in texts])
    remaining = iter(features)
    return [tuple(next(remaining) for _ in texts) for texts in captions]

  def _record(
    self, one: Loaded, arrays: dict[str, Any], features: tuple[np.ndarray, ...]
  ) -> ShardRecord | BadRecordInfo:
    name = self._name(one.draw.record)
    if not all(np.isfinite(x).all() for x in arrays.values()):
      return BadRecordInfo(name, "its latents are not finite in float16")
    epoch = one.draw.epoch
    return ShardRecord(name, epoch, one.captions, features=features, **arrays)

  def _name(self, record: int) -> str:
    name = self.sources[0].name(record).removeprefix(self.root)
    # File names are bytes, and not all of them are text.
    return name.encode("utf-8", "replace").decode()
