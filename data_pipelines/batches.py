"""Rows to batches, read ahead by grain; batch i is a pure function of i."""

import functools
import hashlib
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from data_pipelines.row_plan import RowPlan
from data_pipelines.source import BadRecord, Draw, Sample, Source
from data_pipelines.source_config import LoaderOptions
from lumina_jax import packing
from lumina_jax.tokens import Condition, Tokens

PREFETCH = 4  # Batches that are loaded before they are needed.


class LoadedBatch(NamedTuple):
  """Rows of a batch.

  Attributes:
    batch: tokens and their condition.
    bad_records: a message for each bad record; its segment is empty.
    records: number of records in the rows, bad ones included.
  """

  batch: tuple[Tokens, Condition]
  bad_records: tuple[str, ...]
  records: int


class Batches:
  """Batch i is rows [i B, (i + 1) B) of the plan, or this process's share.

  All batches have the same shapes. A bad record leaves its segment empty, so
  shapes and order do not change.
  """

  def __init__(
    self,
    source: Source,
    budget: tuple[int, int, int],
    rows: int,
    seed: int,
    share: range | None = None,
    weights: Sequence[float] | None = None,
    options: LoaderOptions | None = None,
  ):
    """Plans the batches.

    Args:
      source: source of samples.
      budget: tokens L, words S and samples N of a row.
      rows: number B of rows of the global batch.
      seed: seed of the row plan.
      share: rows of each batch that this process loads; None = all.
      weights: how often each record is drawn, see `RowPlan`.
      options: threads or processes that load batches; None = one thread.

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
    self._options = options or LoaderOptions()
    self._weights = weights

  @property
  def per_epoch(self) -> float:
    """Number of batches in an epoch."""
    return self._plan.rows_per_epoch / self._rows

  @functools.cached_property
  def fingerprint(self) -> str:
    """Checksum of everything that the row plan depends on."""
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
    """Loads this process's rows of batch i."""
    return self.load(i).batch

  def load(self, i: int) -> LoadedBatch:
    """Loads this process's rows of batch i, with the errors of bad records."""
    loaded = [self._load_samples(k) for k in self._row_numbers(i)]
    rows = [
      self._pack(k, samples)
      for k, (samples, _) in zip(self._row_numbers(i), loaded, strict=True)
    ]
    tokens, conditions = zip(*rows, strict=True)
    bad = tuple(error for _, errors in loaded for error in errors)
    count = sum(len(samples) for samples, _ in loaded)
    batch = packing.stack(tokens), packing.stack(conditions)
    return LoadedBatch(batch, bad, count)

  def names(self, i: int) -> list[str]:
    """Names the records of this process's rows of batch i."""
    rows = [self._plan.row(k) for k in self._row_numbers(i)]
    return [self._source.name(draw.record) for row in rows for draw in row]

  def samples(self, i: int) -> Iterator[Sample]:
    """Yields the samples of this process's rows of batch i, but no bad ones."""
    for k in self._row_numbers(i):
      yield from (s for s in self._load_samples(k)[0] if s is not None)

  def read(self, start: int, stop: int) -> Iterator[LoadedBatch]:
    """Yields batches start, ..., stop - 1; a few are loaded ahead."""
    dataset = grain.MapDataset.range(start, stop).map(self.load)
    threads, workers = self._options.threads, self._options.workers
    batches = dataset.to_iter_dataset(
      grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(PREFETCH, 2 * threads)
      )
    )
    if workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Workers inherit grain's own flags.
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers),
        worker_init_fn=_ignore_stop_signals,
      )
    return iter(batches)

  def _row_numbers(self, i: int) -> list[int]:
    return [i * self._rows + k for k in self._share]

  def _load_samples(self, k: int) -> tuple[list[Sample | None], list[str]]:
    """Samples of row k, None for bad records, and the errors of these."""
    samples, errors = [], []
    for draw in self._plan.row(k):
      try:
        samples.append(self._source.sample(draw))
      except BadRecord as error:
        samples.append(None)
        errors.append(str(error))
    return samples, errors

  def _pack(
    self, k: int, samples: list[Sample | None]
  ) -> tuple[Tokens, Condition]:
    length, words, count = self._budget
    template = next((s for s in samples if s is not None), None)
    template = template or self._template
    ids = np.arange(k * count, (k + 1) * count, dtype=np.int32)
    condition = packing.pack_text(
      [s and s.text for s in samples],
      words,
      template.text.shape[-1],
      template.text.dtype,
    )
    row = packing.pack(
      [s and s.grid for s in samples],
      [s and s.patches for s in samples],
      length,
      template.patches.shape[-1],
      template.grid.ids.shape[-1],
    )
    return row, condition._replace(sample_ids=ids)

  @functools.cached_property
  def _template(self) -> Sample:
    """Template for empty rows: the first readable record.

    Raises:
      OSError: if no record can be read.
    """
    message = ""
    for record in range(len(self._source.sizes)):
      try:
        return self._source.sample(Draw(0, record, record))
      except BadRecord as error:
        message = str(error)
    raise OSError(f"no record of the data can be read, the last one: {message}")


def _ignore_stop_signals(*_) -> None:
  """Keeps a worker alive while the main process saves.

  Schedulers send SIGTERM, and terminals SIGINT, to all processes at once.
  Workers end with the process that started them.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
