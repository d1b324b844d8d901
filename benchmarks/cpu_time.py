"""CPU seconds of this process and its children."""

import multiprocessing
import os
import pathlib
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple


class Clock(NamedTuple):
  """Seconds since an arbitrary moment.

  Attributes:
    wall: wall-clock time.
    cpu: CPU time of all threads of this process and of its children, running
      or finished.
  """

  wall: float
  cpu: float


class Rate(NamedTuple):
  """Seconds per example."""

  wall: float
  cpu: float


def now() -> Clock:
  """Reads the clocks; needs /proc if there are children."""
  children = multiprocessing.active_children()
  cpu = time.process_time() + sum(_of(child.pid) for child in children)
  done = resource.getrusage(resource.RUSAGE_CHILDREN)
  return Clock(time.perf_counter(), cpu + done.ru_utime + done.ru_stime)


def rate(stream: Iterator[int], batches: int, skipped: int) -> Rate:
  """Seconds per example of some batches in the middle of a stream.

  Batches before and after them keep all workers busy when the clock starts and
  when it stops, so that equally many are prefetched.

  Args:
    stream: number of examples of each batch; read to its end.
    batches: number of measured batches.
    skipped: batches before them.
  """
  for _ in range(skipped):
    next(stream)
  start = now()
  examples = sum(next(stream) for _ in range(batches))
  stop = now()
  for _ in stream:  # Otherwise its workers would disturb the next measurement.
    pass
  return Rate(
    (stop.wall - start.wall) / examples, (stop.cpu - start.cpu) / examples
  )


def _of(process: int) -> float:
  """CPU seconds of a process: fields 14 and 15 of Linux's stat."""
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text()
  except FileNotFoundError:  # It has finished; RUSAGE_CHILDREN includes it.
    return 0.0
  user, system = text.rpartition(")")[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
