"""SIGTERM: machines that are taken away give notice, and training uses it.

In one process a handler of ours takes the signal. In several JAX's service
does, which makes them agree on the poll at which all of them stop, whichever
was told. The two exclude each other: Python's handler would keep the signal
from the service. So there a second SIGTERM leaves at once only after that poll;
before it, as when another process hangs, SIGKILL does.
"""

from __future__ import annotations

import os
import signal
import threading

from jax.experimental import multihost_utils

from lumina_jax.parallel import processes

LEFT = 128 + signal.SIGTERM  # Exit code of a process that SIGTERM ends.
NOTICE = b"\nSIGTERM: stops after this step; a second one leaves at once\n"


class Preempted(Exception):
  """It is time to save and to leave."""


class Preemption:
  """Watches for SIGTERM while it is open.

  Every process must poll equally often, at the same points of the run.
  """

  def __init__(self):
    self._told, self._polls, self._over = False, 0, False
    self._several = processes.count() > 1
    self._old = None

  def __enter__(self) -> Preemption:
    # Python allows handlers in the main thread only.
    main = threading.current_thread() is threading.main_thread()
    if not self._several and main:
      self._old = signal.signal(signal.SIGTERM, self._take)
    return self

  def __exit__(self, *error) -> None:
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)

  def check(self, *_) -> None:
    """A poll.

    Raises:
      Preempted: in all processes at the same poll, once one was told to stop.
    """
    if self._over:
      return
    self._polls += 1
    if self._several:
      reached = multihost_utils.reached_preemption_sync_point(self._polls)
    else:
      reached = self._told
    if reached:
      self._over = True
      if self._several:
        # The service would swallow a second signal.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(LEFT))
      raise Preempted

  def _take(self, *_) -> None:
    if self._told:
      os._exit(LEFT)  # What is not saved whole has a name that nobody reads.
    self._told = True
    os.write(2, NOTICE)
