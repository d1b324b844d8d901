"""Seconds of CPU that work takes, here and in processes started for it."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple


class Clock(NamedTuple):
  """Seconds since some moment.

  Attributes:
    wall: of the clock.
    cpu: of all threads of this process and its children, whether these still
      run or have been waited for.
  """

  wall: float
  cpu: float


class Rate(NamedTuple):
  """What an example takes, in seconds."""

  wall: float
  cpu: float


def now() -> Clock:
  """Reads the clocks; needs /proc where there are children."""
  children = multiprocessing.active_children()
  cpu = time.process_time() + sum(_of(child.pid) for child in children)
  done = resource.getrusage(resource.RUSAGE_CHILDREN)
  return Clock(time.perf_counter(), cpu + done.ru_utime + done.ru_stime)


def rate(stream: Iterator[int], batches: int, skipped: int) -> Rate:
  """Seconds an example of so many batches, between others.

  Those that are skipped before, and those that are left, keep all makers at
  work when the clock starts and when it stops: as much is made ahead then.

  Args:
    stream: examples of each batch, made as they are asked for or before; it is
      read to its end.
    batches: that count.
    skipped: before the clock starts.
  """
  for _ in range(skipped):
    next(stream)
  began = now()
  examples = sum(next(stream) for _ in range(batches))
  ended = now()
  for _ in stream:  # Else it would go on during what comes next.
    pass
  return Rate(
    (ended.wall - began.wall) / examples, (ended.cpu - began.cpu) / examples
  )


def _of(process: int) -> float:
  """As Linux tells: numbers 14 and 15, counted from the name's end."""
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text()
  except FileNotFoundError:  # Gone since, and among those waited for.
    return 0.0
  user, system = text.rpartition(")")[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
