"""The row plan: which records make up row k, a pure function.

Packing, mixing and shuffling are decided here, from (seed, epoch, sizes) alone.
So the whole state of the data is one integer, the number of the next row, and
any number of processes that split a batch among them read the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.source import Draw
from lumina_jax import packing

# Records are packed a window at a time: first-fit takes quadratic time, and a
# few hundred records fill rows as well as millions.
WINDOW = 512

# Places of an epoch, beyond which weights would take a machine's memory; or
# twice its records, if they are more.
MOST = 20_000_000

# Streams of random numbers, see digits.py.
MIX, EPOCH = 1, 2
EXTRA, DEAL = 30, 31


class Deck(NamedTuple):
  """Records of one kind, and the places that they are dealt to."""

  records: np.ndarray
  places: np.ndarray


class RowPlan:
  """Packs records into rows and shuffles both, anew for each epoch.

  Which sizes share a row is decided once; each epoch then deals records of one
  kind to the places of that kind at random and shuffles the rows. So every
  epoch has the same number of rows, and row k is found without planning those
  before.

  Attributes:
    rows_per_epoch: rows that an epoch makes.
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
      sizes: what each record takes of each budget in its own place, e.g.
        (tokens, words, 1).
      budget: what a row offers, e.g. (tokens, words, samples).
      seed: of the shuffles.
      kinds: records of equal kind take each other's places; None = of equal
        size.
      weights: how often each record is drawn relative to the others; None =
        equally often. The least frequent ones are drawn once an epoch.

    Raises:
      ValueError: if there are no records, one exceeds the budget, or weights
        are no positive numbers or so far apart that an epoch, which draws the
        least frequent records once, would take too much memory.
    """
    if not len(sizes):
      raise ValueError("no records to plan")
    self._seed = seed
    # Places are numbered; a place is as large as the record that it is of.
    self._of = np.repeat(np.arange(len(sizes)), _copies(weights, sizes, seed))
    mixed = np.random.default_rng([MIX, seed]).permutation(len(self._of))
    self._rows: list[list[int]] = []
    for start in range(0, len(mixed), WINDOW):
      window = mixed[start : start + WINDOW]
      packed = packing.first_fit([sizes[self._of[i]] for i in window], budget)
      self._rows += [[int(window[i]) for i in row] for row in packed]
    self._decks = _decks(sizes if kinds is None else kinds, self._of)
    self.rows_per_epoch = len(self._rows)
    self._tokens, self._used = budget[0], sum(sizes[i][0] for i in self._of)
    self._epochs: dict[int, tuple[np.ndarray, ...]] = {}

  @property
  def usage(self) -> float:
    """Share of the tokens of all rows that records fill."""
    return self._used / (len(self._rows) * self._tokens)

  def row(self, k: int) -> list[Draw]:
    """Draws that make up row k, counted over all epochs."""
    epoch, place = divmod(k, self.rows_per_epoch)
    order, records, times = self._epoch(epoch)
    places = self._rows[order[place]]
    return [
      Draw(*map(int, (times[i], records[i], self._of[i]))) for i in places
    ]

  def _epoch(self, number: int) -> tuple[np.ndarray, ...]:
    """Order of rows, records and their times by place.

    Rows are asked for in order, those of two epochs around a change.
    """
    known = self._epochs  # Replaced whole, since several threads ask.
    if number in known:
      return known[number]
    found = self._shuffle(number)
    self._epochs = {n: known[n] for n in sorted(known)[-1:]} | {number: found}
    return found

  def _shuffle(self, epoch: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([EPOCH, self._seed, epoch])
    records = np.empty(len(self._of), np.int64)
    times = np.full(len(self._of), epoch)
    for number, deck in enumerate(self._decks):
      if len(deck.records) == len(deck.places):
        records[deck.places] = rng.permutation(deck.records)
      else:
        dealt = self._deal(number, deck, epoch)
        records[deck.places], times[deck.places] = dealt
    return rng.permutation(self.rows_per_epoch), records, times

  def _deal(
    self, number: int, deck: Deck, epoch: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The next of an endless sequence of permutations of a deck.

    So over the epochs every record is drawn equally often.
    """
    count, size = len(deck.places), len(deck.records)
    turns = np.arange(epoch * count, (epoch + 1) * count)
    times, cards = np.divmod(turns, size)
    seeds = {
      int(t): [DEAL, self._seed, number, int(t)] for t in np.unique(times)
    }
    orders = {
      t: np.random.default_rng(seed).permutation(deck.records)
      for t, seed in seeds.items()
    }
    drawn = [orders[int(t)][card] for t, card in zip(times, cards, strict=True)]
    return np.asarray(drawn), times


def _copies(
  weights: Sequence[float] | None, sizes: Sequence[tuple], seed: int
) -> np.ndarray | int:
  """Places of each record: its weight over the smallest, rounded by lot."""
  if weights is None:
    return 1
  weights = np.asarray(weights, np.float64)
  _check(weights, len(sizes))
  wanted = weights / weights.min()
  copies = np.floor(wanted).astype(np.int64)
  rng = np.random.default_rng([EXTRA, seed])
  for weight in np.unique(wanted):
    (alike,) = np.nonzero(wanted == weight)
    extra = round((weight - np.floor(weight)) * len(alike))
    copies[rng.permutation(alike)[:extra]] += 1
  return copies


def _check(weights: np.ndarray, records: int) -> None:
  if len(weights) != records:
    raise ValueError(f"{len(weights)} weights of {records} records: one each")
  low, high = weights.min(), weights.max()
  if not 0 < low <= high < np.inf:  # What is no number fails too.
    raise ValueError(
      f"weights from {low:g} to {high:g}: all positive, and finite"
    )
  with np.errstate(over="ignore"):
    places = (weights / low).sum()
  if places > max(MOST, 2 * records):
    raise ValueError(
      f"weights from {low:g} to {high:g}: an epoch that draws records of the "
      f"smallest once takes {places:,.0f} places, more than {MOST:,}. Raise "
      "the smallest weight, or leave out what has it"
    )


def _decks(kinds: Sequence[Hashable], of: np.ndarray) -> list[Deck]:
  numbers: dict[Hashable, int] = {}
  kind = np.asarray(
    [numbers.setdefault(k, len(numbers)) for k in map(_key, kinds)]
  )
  records, places = defaultdict(list), defaultdict(list)
  for record, number in enumerate(kind):
    records[number].append(record)
  for place, number in enumerate(kind[of]):
    places[number].append(place)
  return [
    Deck(np.asarray(records[n]), np.asarray(places[n]))
    for n in range(len(numbers))
  ]


def _key(kind: Hashable) -> Hashable:
  return tuple(kind) if isinstance(kind, list) else kind
