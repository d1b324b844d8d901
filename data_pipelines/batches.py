"""Rows to batches, read ahead by grain; batch i is a pure function of i."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from data_pipelines.plan import RowPlan
from data_pipelines.source import BadRecord, Draw, Sample, Source
from lumina_jax import packing
from lumina_jax.tokens import Condition, Tokens

AHEAD = 4  # Batches that are ready before they are asked for.


@dataclasses.dataclass(frozen=True)
class Reading:
  """Who makes rows; it changes nothing of what is in them.

  Attributes:
    threads: that make batches. One is enough where rows are cheap; the step
      needs the cores. Decoding pictures gives way to other threads.
    workers: processes that do, in place of this one; 0 = none.
  """

  threads: int = 1
  workers: int = 0

  def __post_init__(self):
    if self.threads < 1 or self.workers < 0:
      raise ValueError(
        f"threads = {self.threads}, workers = {self.workers}: at least one "
        "thread, and workers from 0"
      )


def _outlive(*_) -> None:
  """Lets a worker work on while this process saves.

  Schedulers send SIGTERM and terminals SIGINT to all processes at once; workers
  end with the one that started them.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


class Loaded(NamedTuple):
  """Rows of a batch as they were read.

  Attributes:
    batch: tokens and their condition.
    faults: a line for each record that was broken; its segment is empty.
    records: how many were asked for.
  """

  batch: tuple[Tokens, Condition]
  faults: tuple[str, ...]
  records: int


class Batches:
  """Batch i = rows [i B, (i + 1) B) of the plan, this process's share of them.

  Every batch has the same shapes, whatever its rows hold. A record that is
  broken leaves its segment empty, so that shapes and order stay.
  """

  def __init__(
    self,
    source: Source,
    budget: tuple[int, int, int],
    rows: int,
    seed: int,
    share: range | None = None,
    weights: Sequence[float] | None = None,
    reading: Reading = Reading(),
  ):
    """Plans batches.

    Args:
      source: of samples.
      budget: tokens L, words S and samples N of a row.
      rows: B of the global batch.
      seed: of the row plan.
      share: rows of each batch that this process makes; None = all.
      weights: how often each record is drawn, see `RowPlan`.
      reading: who makes the rows.

    Raises:
      ValueError: if a sample does not fit a row.
    """
    largest = tuple(np.max(source.sizes, axis=0).tolist())
    if any(size > room for size, room in zip(largest, budget, strict=True)):
      raise ValueError(
        f"the largest sample takes {largest} (tokens, words, samples), a row "
        f"offers {tuple(budget)}; raise data.row_tokens or data.row_words"
      )
    self._source, self._budget, self._rows = source, budget, rows
    self._share = range(rows) if share is None else share
    self._plan = RowPlan(source.sizes, budget, seed, source.kinds, weights)
    self._reading, self._weights = reading, weights

  @property
  def per_epoch(self) -> float:
    """Batches of an epoch."""
    return self._plan.rows_per_epoch / self._rows

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of all that the row plan is a function of: other data have another."""
    digest = hashlib.sha256(np.asarray(self._source.sizes).tobytes())
    for kind in self._source.kinds:
      digest.update(repr(kind).encode())
    if self._weights is not None:
      digest.update(np.asarray(self._weights, np.float64).tobytes())
    return digest.hexdigest()

  @property
  def usage(self) -> float:
    """Share of the tokens of all rows that samples fill."""
    return self._plan.usage

  def batch(self, i: int) -> tuple[Tokens, Condition]:
    """This process's rows of batch i."""
    return self.load(i).batch

  def load(self, i: int) -> Loaded:
    """This process's rows of batch i, and what was wrong with its records."""
    drawn = [self._draw(k) for k in self._numbers(i)]
    rows = [
      self._row(k, samples)
      for k, (samples, _) in zip(self._numbers(i), drawn, strict=True)
    ]
    tokens, conditions = zip(*rows, strict=True)
    faults = tuple(fault for _, found in drawn for fault in found)
    count = sum(len(samples) for samples, _ in drawn)
    batch = packing.stack(tokens), packing.stack(conditions)
    return Loaded(batch, faults, count)

  def names(self, i: int) -> list[str]:
    """Says which records this process's rows of batch i are made of."""
    rows = [self._plan.row(k) for k in self._numbers(i)]
    return [self._source.name(draw.record) for row in rows for draw in row]

  def samples(self, i: int) -> Iterator[Sample]:
    """What this process's rows of batch i hold, without what is broken."""
    for k in self._numbers(i):
      yield from (s for s in self._draw(k)[0] if s is not None)

  def read(self, start: int, stop: int) -> Iterator[Loaded]:
    """Iterates over batches start, ..., stop - 1, a few of them ahead."""
    dataset = grain.MapDataset.range(start, stop).map(self.load)
    how = self._reading
    ahead = max(AHEAD, 2 * how.threads)
    options = grain.ReadOptions(
      num_threads=how.threads, prefetch_buffer_size=ahead
    )
    batches = dataset.to_iter_dataset(options)
    if how.workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's own, which workers inherit.
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=how.workers),
        worker_init_fn=_outlive,
      )
    return iter(batches)

  def _numbers(self, i: int) -> list[int]:
    return [i * self._rows + k for k in self._share]

  def _draw(self, k: int) -> tuple[list[Sample | None], list[str]]:
    """Samples of row k, None for those that are broken, and why."""
    samples, faults = [], []
    for draw in self._plan.row(k):
      try:
        samples.append(self._source.sample(draw))
      except BadRecord as error:
        samples.append(None)
        faults.append(str(error))
    return samples, faults

  def _row(
    self, k: int, drawn: list[Sample | None]
  ) -> tuple[Tokens, Condition]:
    length, words, samples = self._budget
    like = next((s for s in drawn if s is not None), None) or self._example
    ids = np.arange(k * samples, (k + 1) * samples, dtype=np.int32)
    condition = packing.pack_text(
      [s and s.text for s in drawn], words, like.text.shape[-1], like.text.dtype
    )
    row = packing.pack(
      [s and s.grid for s in drawn],
      [s and s.patches for s in drawn],
      length,
      like.patches.shape[-1],
      like.grid.ids.shape[-1],
    )
    return row, condition._replace(sample_ids=ids)

  @functools.cached_property
  def _example(self) -> Sample:
    """The first record that is whole, for what a row of none has to be like.

    Raises:
      OSError: if there is none.
    """
    fault = ""
    for record in range(len(self._source.sizes)):
      try:
        return self._source.sample(Draw(0, record, record))
      except BadRecord as error:
        fault = str(error)
    raise OSError(f"no record of the data can be read, the last one: {fault}")
