"""Progress of long work: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich import progress as rich_progress

LINE_EVERY = 10.0  # seconds between plain lines
SOON = 0.1  # seconds within which a speed says nothing


class Progress:
  """Shows how far a loop is, at which speed, and how long it still takes.

  with Progress("training", total=1000, done=200) as bar:
    bar.show(201, "loss 0.51")
  """

  def __init__(
    self,
    what: str,
    total: int,
    done: int = 0,
    unit: str = "steps",
    note: str = "compiling",
  ):
    self._what, self._total, self._unit = what, total, unit
    self._first, self._since = done, None
    self._last_line = -LINE_EVERY
    self._bar = None
    if sys.stdout.isatty():
      self._bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
      )
      self._task = self._bar.add_task(
        what, total=total, completed=done, note=note
      )

  def __enter__(self) -> Progress:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *error) -> None:
    if self._bar:
      self._bar.stop()

  def show(self, done: int, note: str = "") -> None:
    """Shows how many are done."""
    if not done:
      return
    now = time.monotonic()
    if self._since is None:  # The first step compiles: do not count its time.
      self._first, self._since = done, now
    text = "  ".join(t for t in (note, self._speed(done, now)) if t)
    if self._bar:
      self._bar.update(self._task, completed=done, note=text)
    elif now - self._last_line >= LINE_EVERY or done >= self._total:
      self._last_line = now
      print(
        f"{self._what}: {done}/{self._total} {self._unit}  {text}", flush=True
      )

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves time spent on something else out of the speed."""
    began = time.monotonic()
    yield
    if self._since is not None:
      self._since += time.monotonic() - began

  def _speed(self, done: int, now: float) -> str:
    through, seconds = done - self._first, now - self._since
    if through <= 0 or seconds < SOON:
      return ""
    speed = through / seconds
    left = round((self._total - done) / speed)
    pace = f"{speed:.1f} {self._unit}/s"
    if speed < 0.1:
      pace = f"{1 / speed:.0f} s each"
    return f"{pace}  {left // 60}:{left % 60:02d} left"
