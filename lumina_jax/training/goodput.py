"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# All that is no training: until the first step is through, waiting for
# batches, for checkpoints, for pictures.
KINDS = ("starting", "data", "saving", "sampling")


class Ledger:
  """Seconds of wall time by what they were spent on; the rest is training.

  Attributes:
    spent: seconds by kind.
  """

  def __init__(self):
    self._began = time.monotonic()
    self.spent = dict.fromkeys(KINDS, 0.0)
    self._running = False

  @property
  def total(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._began

  @property
  def training(self) -> float:
    """Seconds in which steps were under way and nothing else was waited for."""
    if not self._running:
      return 0.0
    return max(0.0, self.total - sum(self.spent.values()))

  @property
  def stepping(self) -> float:
    """Seconds of training and of waiting for its batches."""
    return self.training + self.spent["data"] if self._running else 0.0

  def started(self) -> bool:
    """Books all time until now, but what was booked already, as starting.

    Returns:
      Whether this was the first call; later ones do nothing.
    """
    if self._running:
      return False
    self.spent["starting"] += self.total - sum(self.spent.values())
    self._running = True
    return True

  @contextlib.contextmanager
  def spend(self, kind: str) -> Iterator[None]:
    """Books the time of a block."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.spent[kind] += time.monotonic() - began

  def waiting(self, batches: Iterable[T]) -> Iterator[T]:
    """Iterates, and books the time that each item is waited for."""
    items = iter(batches)
    while True:
      with self.spend("data"):
        try:
          item = next(items)
        except StopIteration:
          return
      yield item

  def share(self, kind: str) -> float:
    """Share of a kind in all the time so far."""
    return self.spent[kind] / self.total

  def summary(self) -> str:
    """Shares in a line."""
    parts = {"training": self.training} | self.spent
    total = self.total
    shares = [f"{name} {x / total:.1%}" for name, x in parts.items() if x > 0]
    return f"{total:.0f} s: {', '.join(shares)}"
