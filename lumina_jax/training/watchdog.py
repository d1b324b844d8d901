"""A watchdog: a step that takes far too long is told of, with all stacks."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator


class Watchdog:
  """Dumps the stack of every thread when no step has ended for too long.

  It only tells, and again after twice the time: whether a step hangs, waits
  for a dead process or for the disk stands in the stacks.

  with Watchdog(600) as watchdog:
    ...
    watchdog.beat(step)
  """

  def __init__(self, seconds: float):
    """Takes the time that no step should need; 0 = never bark."""
    self._seconds = seconds
    self._step, self._since = 0, None
    self._wait = seconds
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> Watchdog:
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._done.set()

  def beat(self, step: int) -> None:
    """Says that a step has ended; before the first call all is quiet."""
    self._step, self._since, self._wait = step, time.monotonic(), self._seconds

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Looks away while something else is done."""
    since, self._since = self._since, None
    yield
    if since is not None:
      self.beat(self._step)

  def _watch(self) -> None:
    while not self._done.wait(min(self._seconds / 4, 5)):
      since = self._since
      if since is not None and time.monotonic() - since > self._wait:
        self._bark(time.monotonic() - since)
        self._wait *= 2

  def _bark(self, seconds: float) -> None:
    print(
      f"\nWATCHDOG: nothing has happened for {seconds:.0f} s since step "
      f"{self._step}; what every thread is doing:",
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
