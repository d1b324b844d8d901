"""Rows to batches, read ahead by grain; batch i is a pure function of i."""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np

from data_pipelines.plan import RowPlan
from data_pipelines.source import Source
from lumina_jax import packing
from lumina_jax.tokens import Condition, Tokens


class Batches:
  """Batch i = rows [i B, (i + 1) B) of the plan, this process's share of them.

  Every batch has the same shapes, whatever its rows hold.
  """

  def __init__(
    self,
    source: Source,
    budget: tuple[int, int, int],
    rows: int,
    seed: int,
    share: range | None = None,
  ):
    """Plans batches.

    Args:
      source: of samples.
      budget: tokens L, words S and samples N of a row.
      rows: B of the global batch.
      seed: of the row plan.
      share: rows of each batch that this process makes; None = all.
    """
    largest = tuple(np.max(source.sizes, axis=0).tolist())
    if any(size > room for size, room in zip(largest, budget, strict=True)):
      raise ValueError(
        f"the largest sample takes {largest} (tokens, words, samples), a row "
        f"offers {tuple(budget)}; raise data.row_tokens or data.row_words"
      )
    self._source, self._budget, self._rows = source, budget, rows
    self._share = range(rows) if share is None else share
    self._plan = RowPlan(source.sizes, budget, seed)

  def batch(self, i: int) -> tuple[Tokens, Condition]:
    """This process's rows of batch i."""
    rows = [self._row(i * self._rows + k) for k in self._share]
    row_tokens, conditions = zip(*rows, strict=True)
    return packing.stack(row_tokens), packing.stack(conditions)

  def read(self, start: int, stop: int) -> Iterator[tuple[Tokens, Condition]]:
    """Iterates over batches start, ..., stop - 1, a few of them ahead."""
    dataset = grain.MapDataset.range(start, stop).map(self.batch)
    # One thread is enough where rows are cheap; the step needs the cores.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))

  def _row(self, k: int) -> tuple[Tokens, Condition]:
    length, words, samples = self._budget
    epoch, records = self._plan.row(k)
    drawn = [self._source.sample(epoch, record) for record in records]
    width = drawn[0].text.shape[-1]
    ids = np.arange(k * samples, (k + 1) * samples, dtype=np.int32)
    condition = packing.pack_text([s.text for s in drawn], words, width)
    row = packing.pack(
      [sample.grid for sample in drawn],
      [sample.patches for sample in drawn],
      length,
      drawn[0].patches.shape[-1],
      drawn[0].grid.ids.shape[-1],
    )
    return row, condition._replace(sample_ids=ids)
