"""Goodput: the share of a run's wall time that goes into training steps."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Everything that is not training: the time until the first step is done, and
# waiting for batches, checkpoints and samples.
BADPUT = ("startup", "data", "checkpoint", "sampling")


class GoodputTracker:
  """Splits wall time into badput by kind; the rest is training.

  Attributes:
    badput: seconds by kind.
  """

  def __init__(self):
    self._start = time.monotonic()
    self.badput = dict.fromkeys(BADPUT, 0.0)
    self._running = False

  @property
  def total(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._start

  @property
  def training(self) -> float:
    """Seconds in which steps ran and nothing else was waited for."""
    if not self._running:
      return 0.0
    return max(0.0, self.total - sum(self.badput.values()))

  @property
  def stepping(self) -> float:
    """Seconds of training and of waiting for its batches."""
    return self.training + self.badput["data"] if self._running else 0.0

  def start_training(self) -> bool:
    """Counts all time so far that has no kind yet as startup.

    Returns:
      Whether this is the first call; later calls do nothing.
    """
    if self._running:
      return False
    self.badput["startup"] += self.total - sum(self.badput.values())
    self._running = True
    return True

  @contextlib.contextmanager
  def track(self, kind: str) -> Iterator[None]:
    """Counts the time of a block as badput of a kind."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.badput[kind] += time.monotonic() - start

  def track_data(self, batches: Iterable[T]) -> Iterator[T]:
    """Iterates, and counts the time that each batch takes as badput."""
    iterator = iter(batches)
    while True:
      with self.track("data"):
        try:
          batch = next(iterator)
        except StopIteration:
          return
      yield batch

  def summary(self) -> str:
    """One line with the share of each kind."""
    total = self.total
    seconds = {"training": self.training} | self.badput
    shares = [f"{kind} {x / total:.1%}" for kind, x in seconds.items() if x > 0]
    return f"{total:.0f} s: {', '.join(shares)}"
