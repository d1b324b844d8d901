"""What goes into each shard: pictures loaded, encoded and put in order.

A shard depends on its own records alone: its batches begin and end with it, and
what goes into one depends on their order. So it has the same bytes whoever
writes it, and whatever was written before; but for last bits where XLA picks
kernels by timing them, as it does for GPUs.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from data_pipelines.bad_records import FEWEST
from data_pipelines.shard_record import Record, to_bytes
from data_pipelines.shards import Bad
from data_pipelines.source import BadRecord, Draw

AHEAD = 4  # Pictures of each thread on their way, so that memory stays small.
# Batches' worth of records that wait for one of a rare size, before its batch
# is encoded as it is: few enough to be held, so many that few are not full.
WAITING = 32

In, Out = TypeVar("In"), TypeVar("Out")


class Pictures(Protocol):
  """Pictures by draw, such as `images.Images`."""

  def pixels(self, draw: Draw) -> tuple[np.ndarray, str]:
    """The crop `f32[H, W, C]` in [-1, 1] and a caption.

    Raises:
      BadRecord: if it cannot be read.
    """

  def name(self, record: int) -> str:
    """Says which record that is."""


class Loaded(NamedTuple):
  """A picture `f32[H, W, C]` and all its captions."""

  draw: Draw
  pixels: np.ndarray
  captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Job:
  """Pictures to be written into shards, epoch after epoch.

  Attributes:
    sources: of pictures, one for each epoch, all of the same records.
    captions: of each record.
    records_per_shard: the last shard has what is left.
    moments: pictures `f32[B, H, W, C]` -> mean and deviation of their latents,
      `f32[B, h, w, C]`; None = pixels are stored.
    features: captions -> `bf16[S, E]` each; None = text is stored.
    batch_size: pictures that are encoded at once.
    threads: that load pictures.
    root: what names begin with and records leave out.
  """

  sources: Sequence[Pictures]
  captions: Sequence[tuple[str, ...]]
  records_per_shard: int
  moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
  features: Callable[[Sequence[str]], list[np.ndarray]] | None = None
  batch_size: int = 8
  threads: int = 4
  root: str = ""

  def __post_init__(self):
    for name in ("records_per_shard", "batch_size", "threads"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    if not self.sources or not self.captions:
      raise ValueError("no pictures to encode")

  @property
  def total(self) -> int:
    """Records of all epochs."""
    return len(self.sources) * len(self.captions)

  @property
  def shards(self) -> int:
    return -(-self.total // self.records_per_shard)

  def draws(self, shard: int) -> list[Draw]:
    """What goes into a shard, bad or not."""
    start = shard * self.records_per_shard
    stop = min(start + self.records_per_shard, self.total)
    pairs = (divmod(k, len(self.captions)) for k in range(start, stop))
    return [Draw(epoch, record, record) for epoch, record in pairs]

  def records(self, shard: int) -> Iterator[Record | Bad]:
    """The records of a shard, in order; pictures of equal size in batches.

    No more than WAITING * batch_size of them are held at a time, besides those
    that threads load ahead.
    """
    waiting: dict[tuple[int, ...], dict[int, Loaded]] = {}
    done: dict[int, Record | Bad] = {}
    following = 0
    loaded = ahead(self._load, self.draws(shard), self.threads)
    for place, one in enumerate(loaded):
      if isinstance(one, Bad):
        done[place] = one
      else:
        batch = waiting.setdefault(one.pixels.shape, {})
        batch[place] = one
        if len(batch) == self.batch_size:
          done |= self._encode(waiting.pop(one.pixels.shape))
      if place - following >= WAITING * self.batch_size - 1:
        done |= self._encode_of(following, waiting)
      while following in done:
        yield done.pop(following)
        following += 1
    for batch in waiting.values():
      done |= self._encode(batch)
    for place in sorted(done):
      yield done[place]

  def _encode_of(
    self, place: int, waiting: dict[tuple[int, ...], dict[int, Loaded]]
  ) -> dict[int, Record | Bad]:
    """Encodes the batch that a place waits in, if any, however few it has."""
    for shape, batch in waiting.items():
      if place in batch:
        return self._encode(waiting.pop(shape))
    return {}

  def _load(self, draw: Draw) -> Loaded | Bad:
    captions = self.captions[draw.record]
    try:
      pixels, _ = self.sources[draw.epoch].pixels(draw)
      for caption in captions:
        caption.encode()
    except (BadRecord, UnicodeEncodeError) as error:
      name = self._name(draw.record)
      reason = str(error).removeprefix(self.root).removeprefix(f"{name}: ")
      return Bad(name, reason)
    return Loaded(draw, pixels, captions)

  def _encode(self, batch: dict[int, Loaded]) -> dict[int, Record | Bad]:
    """Records of pictures of one size, by their places in the shard."""
    pixels = np.stack([one.pixels for one in batch.values()])
    if self.moments is None:
      media = [{"pixels": to_bytes(x)} for x in pixels]
    else:
      with np.errstate(over="ignore"):
        pair = [x.astype(np.float16) for x in self.moments(pixels)]
      media = [{"mean": m, "std": s} for m, s in zip(*pair, strict=True)]
    texts = self._features([one.captions for one in batch.values()])
    return {
      place: self._record(one, medium, features)
      for (place, one), medium, features in zip(
        batch.items(), media, texts, strict=True
      )
    }

  def _features(
    self, captions: list[tuple[str, ...]]
  ) -> list[tuple[np.ndarray, ...]]:
    if self.features is None:
      return [()] * len(captions)
    found = iter(self.features([text for texts in captions for text in texts]))
    return [tuple(next(found) for _ in texts) for texts in captions]

  def _record(
    self, one: Loaded, medium: dict[str, Any], features: tuple[np.ndarray, ...]
  ) -> Record | Bad:
    name = self._name(one.draw.record)
    if not all(np.isfinite(x).all() for x in medium.values()):
      return Bad(name, "its latents are no finite numbers in float16")
    captions, epoch = one.captions, one.draw.epoch
    return Record(name, epoch, captions, features=features, **medium)

  def _name(self, record: int) -> str:
    name = self.sources[0].name(record).removeprefix(self.root)
    # Names of files are bytes, and not all are text.
    return name.encode("utf-8", "replace").decode()


class BadLimit:
  """Stops a run that leaves out too many of its records."""

  def __init__(self, share: float):
    """Starts at nothing.

    Args:
      share: of records that may be left out, of those seen so far, and of the
        first hundred.

    Raises:
      ValueError: if it is no share.
    """
    if not 0 <= share <= 1:
      raise ValueError(f"max_bad = {share:g}: a share, from 0 to 1")
    self._share, self.seen, self.bad = share, 0, 0

  def add(self, seen: int, bad: Sequence[Bad]) -> None:
    """Counts.

    Raises:
      OSError: if there are too many.
    """
    self.seen += seen
    self.bad += len(bad)
    if bad and self.bad > self._share * max(self.seen, FEWEST):
      raise OSError(
        f"{self.bad} of {self.seen} records could not be used, more than "
        f"--max_bad={self._share:g}; the last one: {bad[-1].name} "
        f"({bad[-1].reason}). Mend the pictures, or raise the limit"
      )

  def watch(self, records: Iterable[Record | Bad]) -> Iterator[Record | Bad]:
    """Passes records on, and counts them."""
    for record in records:
      self.add(1, [record] if isinstance(record, Bad) else [])
      yield record


def ahead(
  function: Callable[[In], Out], items: Iterable[In], threads: int
) -> Iterator[Out]:
  """function of each item, in order, a few of them ahead in threads."""
  with ThreadPoolExecutor(threads) as pool:
    queue = deque()
    try:
      for item in items:
        queue.append(pool.submit(function, item))
        if len(queue) > AHEAD * threads:
          yield queue.popleft().result()
      while queue:
        yield queue.popleft().result()
    finally:
      for future in queue:
        future.cancel()
