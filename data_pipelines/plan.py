"""The row plan: which records make up row k, a pure function.

Packing and shuffling are decided here, from (seed, epoch, sizes) alone. So the
whole state of the data is one integer, the number of the next row, and any
number of processes that split a batch among them read the same rows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lumina_jax import packing

# Records are packed a window at a time: first-fit takes quadratic time, and a
# few hundred records fill rows as well as millions.
WINDOW = 512

MIX, EPOCH = 1, 2  # streams of random numbers, see digits.py


class RowPlan:
  """Packs records into rows and shuffles both, anew for each epoch.

  Which sizes share a row is decided once; each epoch then deals records of
  equal size to those places at random and shuffles the rows. So every epoch has
  the same number of rows, and row k is found without planning those before.

  Attributes:
    rows_per_epoch: rows that an epoch of all records makes.
  """

  def __init__(
    self,
    sizes: Sequence[tuple[int, ...]],
    budget: tuple[int, ...],
    seed: int,
  ):
    """Plans rows.

    Args:
      sizes: what each record takes of each budget, e.g. (tokens, words, 1).
      budget: what a row offers, e.g. (tokens, words, samples).
      seed: of the shuffles.

    Raises:
      ValueError: if there are no records, or one exceeds the budget.
    """
    if not sizes:
      raise ValueError("no records to plan")
    self._seed = seed
    mixed = np.random.default_rng([MIX, seed]).permutation(len(sizes))
    self._rows: list[list[int]] = []
    for start in range(0, len(sizes), WINDOW):
      window = mixed[start : start + WINDOW]
      packed = packing.first_fit([sizes[i] for i in window], budget)
      self._rows += [[int(window[i]) for i in row] for row in packed]
    classes = defaultdict(list)
    for record, size in enumerate(sizes):
      classes[tuple(size)].append(record)
    self._classes = [np.asarray(members) for members in classes.values()]
    self.rows_per_epoch = len(self._rows)
    # Rows are asked for in order, those of two epochs around a change.
    self._epoch = functools.lru_cache(maxsize=2)(self._shuffle)

  def row(self, k: int) -> tuple[int, list[int]]:
    """Returns the epoch and the records of row k, counted over all epochs."""
    epoch, place = divmod(k, self.rows_per_epoch)
    order, dealt = self._epoch(epoch)
    return epoch, [int(dealt[i]) for i in self._rows[order[place]]]

  def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([EPOCH, self._seed, epoch])
    dealt = np.empty(sum(map(len, self._classes)), np.int64)
    for members in self._classes:
      dealt[members] = rng.permutation(members)
    return rng.permutation(self.rows_per_epoch), dealt
