"""A watchdog that shows where a hanging step hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Iterator

STDERR = 2


class Watchdog:
  """Dumps the stacks of all threads when no step ends for too long.

  The dump goes to standard error and is repeated each time the period passes
  again. It tells whether a step hangs, waits for a dead process or waits for
  the disk; it stops nothing. `faulthandler` writes it from a thread of its own
  that needs no GIL, so that it also works while native code holds the GIL.

  with Watchdog(600) as watchdog:
    ...
    watchdog.beat()
  """

  def __init__(self, seconds: float):
    """Takes the time that no step should need; 0 = never dump."""
    self._seconds = seconds
    self._armed: float | None = None  # When; None = not.

  def __enter__(self) -> Watchdog:
    return self

  def __exit__(self, *error) -> None:
    self._disarm()

  def beat(self) -> None:
    """Reports that a step has ended. The first call starts the watch."""
    if not self._seconds:
      return
    now = time.monotonic()
    # Arming starts a thread: not at every step.
    if self._armed is None or now - self._armed > self._seconds / 20:
      faulthandler.dump_traceback_later(self._seconds, repeat=True, file=STDERR)
      self._armed = now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the watch during other work."""
    armed = self._armed is not None
    self._disarm()
    yield
    if armed:
      self.beat()

  def _disarm(self) -> None:
    if self._armed is not None:
      faulthandler.cancel_dump_traceback_later()
      self._armed = None
