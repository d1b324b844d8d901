"""SIGTERM announces a preemption: training saves and stops in time.

In one process our own handler takes the signal. In several processes JAX's
service does, and makes all of them stop at the same poll, whichever process got
the signal. The two exclude each other: Python's handler would hide the signal
from the service. There, a second SIGTERM ends a process at once only after that
poll; before it, e.g. when another process hangs, use SIGKILL.
"""

from __future__ import annotations

import os
import signal
import threading

from jax.experimental import multihost_utils

from lumina_jax.parallel import processes

EXIT_CODE = 128 + signal.SIGTERM  # Of a process that SIGTERM ends.
NOTICE = b"\nSIGTERM: stops after this step; a second one exits at once\n"


class Preempted(Exception):
  """The run has to save its state and stop."""


class Preemption:
  """Watches for SIGTERM while it is open.

  Every process must poll equally often, at the same points of the run.
  """

  def __init__(self):
    self._signalled, self._raised, self._polls = False, False, 0
    self._several = processes.count() > 1
    self._previous = None

  def __enter__(self) -> Preemption:
    # Python allows handlers in the main thread only.
    main = threading.current_thread() is threading.main_thread()
    if not self._several and main:
      self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *error) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def poll(self, *_) -> None:
    """Checks for a signal; accepts any arguments, so that it is a callback.

    Raises:
      Preempted: once, in all processes at the same poll.
    """
    if self._raised:
      return
    self._polls += 1
    if self._several:
      reached = multihost_utils.reached_preemption_sync_point(self._polls)
    else:
      reached = self._signalled
    if reached:
      self._raised = True
      if self._several:
        # JAX's service would swallow a second signal.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_CODE))
      raise Preempted

  def _handle(self, *_) -> None:
    if self._signalled:
      os._exit(EXIT_CODE)  # Unfinished files have temporary names.
    self._signalled = True
    os.write(2, NOTICE)
