"""The row plan: which records make up row k, a pure function.

Packing, mixing and shuffling depend on (seed, epoch, sizes) alone. So the state
of the data is one integer, the number of the next row, and any number of
processes that share a batch read the same rows.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.source import Draw, Stream
from lumina_jax import packing

# Records are packed in chunks: first-fit takes quadratic time, and a few
# hundred records fill rows as well as millions.
CHUNK = 512

# Largest number of slots of an epoch, or twice the records if that is more.
# More slots, from weights far apart, would exhaust the memory of a machine.
MAX_SLOTS = 20_000_000


class Kind(NamedTuple):
  """Records of one kind `i64[M]`, and the slots that they fill `i64[N]`."""

  records: np.ndarray
  slots: np.ndarray


class RowPlan:
  """Packs records into rows and shuffles both in each epoch.

  The plan decides once which sizes share a row. Each epoch assigns records of
  a kind to the slots of that kind at random, and shuffles the rows. So every
  epoch has the same number of rows, and row k does not require the rows before
  it.

  Attributes:
    rows_per_epoch: number of rows in an epoch.
  """

  def __init__(
    self,
    sizes: Sequence[tuple[int, ...]],
    budget: tuple[int, ...],
    seed: int,
    kinds: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
  ):
    """Plans rows.

    Args:
      sizes: what each record takes of each budget in its own slot, e.g.
        (tokens, words, 1).
      budget: what a row offers, e.g. (tokens, words, samples).
      seed: seed of the shuffles.
      kinds: records of equal kind swap slots; None = records of equal size.
      weights: how often each record is drawn relative to the others; None =
        equally often. Records of the smallest weight are drawn once an epoch.

    Raises:
      ValueError: if there are no records, one exceeds the budget, or weights
        are not positive numbers or are too far apart.
    """
    if not len(sizes):
      raise ValueError("no records to plan")
    self._seed = seed
    # A slot has a number, and the size of the record that it belongs to.
    self._slots = np.repeat(
      np.arange(len(sizes)), _slots_per_record(weights, sizes, seed)
    )
    rng = np.random.default_rng([Stream.PLAN_MIX, seed])
    order = rng.permutation(len(self._slots))
    self._rows: list[list[int]] = []
    for start in range(0, len(order), CHUNK):
      chunk = order[start : start + CHUNK]
      packed = packing.first_fit([sizes[self._slots[i]] for i in chunk], budget)
      self._rows += [[int(chunk[i]) for i in row] for row in packed]
    self._kinds = _group(sizes if kinds is None else kinds, self._slots)
    self.rows_per_epoch = len(self._rows)
    self._tokens = budget[0]
    self._used = sum(sizes[i][0] for i in self._slots)
    self._epochs: dict[int, tuple[np.ndarray, ...]] = {}

  @property
  def usage(self) -> float:
    """Share of the tokens of all rows that records fill."""
    return self._used / (len(self._rows) * self._tokens)

  def row(self, k: int) -> list[Draw]:
    """Returns the draws of row k, counted over all epochs."""
    epoch, place = divmod(k, self.rows_per_epoch)
    order, records, times = self._epoch(epoch)
    slots = self._rows[order[place]]
    return [
      Draw(*map(int, (times[i], records[i], self._slots[i]))) for i in slots
    ]

  def _epoch(self, number: int) -> tuple[np.ndarray, ...]:
    """Order of rows, and by slot the record and how often it was drawn.

    Rows are read in order, so two epochs are kept.
    """
    kept = self._epochs  # Replaced as a whole, since several threads read it.
    if number in kept:
      return kept[number]
    epoch = self._shuffle(number)
    self._epochs = {n: kept[n] for n in sorted(kept)[-1:]} | {number: epoch}
    return epoch

  def _shuffle(self, epoch: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([Stream.PLAN_EPOCH, self._seed, epoch])
    records = np.empty(len(self._slots), np.int64)
    times = np.full(len(self._slots), epoch)
    for number, kind in enumerate(self._kinds):
      if len(kind.records) == len(kind.slots):
        records[kind.slots] = rng.permutation(kind.records)
      else:
        dealt = self._deal(number, kind, epoch)
        records[kind.slots], times[kind.slots] = dealt
    return rng.permutation(self.rows_per_epoch), records, times

  def _deal(
    self, number: int, kind: Kind, epoch: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The next records of an endless sequence of permutations of a kind.

    So over the epochs every record is drawn equally often.
    """
    count, size = len(kind.slots), len(kind.records)
    turns = np.arange(epoch * count, (epoch + 1) * count)
    times = turns // size
    orders = []
    for time in range(times[0], times[-1] + 1):
      key = [Stream.PLAN_DEAL, self._seed, number, time]
      orders.append(np.random.default_rng(key).permutation(kind.records))
    return np.concatenate(orders)[turns - times[0] * size], times


def _slots_per_record(
  weights: Sequence[float] | None, sizes: Sequence[tuple], seed: int
) -> np.ndarray | int:
  """Each weight over the smallest; fractions are rounded at random."""
  if weights is None:
    return 1
  weights = np.asarray(weights, np.float64)
  _check_weights(weights, len(sizes))
  ratios = weights / weights.min()
  slots = np.floor(ratios).astype(np.int64)
  rng = np.random.default_rng([Stream.PLAN_EXTRA, seed])
  for weight in np.unique(ratios):
    (equal,) = np.nonzero(ratios == weight)
    extra = round((weight - np.floor(weight)) * len(equal))
    slots[rng.permutation(equal)[:extra]] += 1
  return slots


def _check_weights(weights: np.ndarray, records: int) -> None:
  if len(weights) != records:
    raise ValueError(f"{len(weights)} weights of {records} records: one each")
  low, high = weights.min(), weights.max()
  if not 0 < low <= high < np.inf:  # NaN fails too.
    raise ValueError(
      f"weights from {low:g} to {high:g}: must be positive and finite"
    )
  with np.errstate(over="ignore"):
    slots = (weights / low).sum()
  if slots > max(MAX_SLOTS, 2 * records):
    raise ValueError(
      f"weights from {low:g} to {high:g}: an epoch that draws records of the "
      f"smallest once takes {slots:,.0f} slots, more than {MAX_SLOTS:,}. Raise "
      "the smallest weight, or leave out the records that have it"
    )


def _group(kinds: Sequence[Hashable], slots: np.ndarray) -> list[Kind]:
  """Records and slots by kind, in the order in which kinds appear."""
  numbers: dict[Hashable, int] = {}
  of_record = np.asarray(
    [
      numbers.setdefault(tuple(k) if isinstance(k, list) else k, len(numbers))
      for k in kinds
    ]
  )

  def places(of_place: np.ndarray) -> list[np.ndarray]:
    """The places of each kind, in order."""
    ends = np.cumsum(np.bincount(of_place, minlength=len(numbers)))
    return np.split(np.argsort(of_place, kind="stable"), ends[:-1])

  return list(map(Kind, places(of_record), places(of_record[slots])))
