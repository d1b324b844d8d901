"""A trace of some steps, for a profiler to show."""

from __future__ import annotations

import re
from typing import Any

import jax
from etils import epath

FOLDER = "profile"


class Profile:
  """Traces the steps first, ..., last of a run.

  `tensorboard --logdir=<workdir>/profile` (with xprof installed) or
  ui.perfetto.dev (the .trace.json.gz) shows it.
  """

  def __init__(self, steps: str, workdir: epath.PathLike):
    """Plans a trace.

    Args:
      steps: "10:13" for steps 10 to 13; "" = none.
      workdir: the trace lies below it.

    Raises:
      ValueError: if that is no range of steps.
    """
    self._folder = epath.Path(workdir) / FOLDER
    self._on = self._begun = False
    self._first = self._last = 0
    if not steps:
      return
    found = re.fullmatch(r"(\d+):(\d+)", steps)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
      raise ValueError(
        f"profile_steps {steps!r}: write first:last, from 1, such as 10:13"
      )
    self._first, self._last = int(found[1]), int(found[2])

  def before(self, step: int) -> None:
    """Begins the trace, if it begins with this step."""
    if step == self._first:
      jax.profiler.start_trace(str(self._folder))
      self._on = self._begun = True

  def after(self, step: int, values: Any) -> None:
    """Ends the trace, if it ends with this step, once `values` are there."""
    if self._on and step >= self._last:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    """Ends a trace that the run has not come to the end of."""
    if self._first and not self._begun:
      print(f"no trace: step {self._first} did not run this time")
    if self._on:
      jax.profiler.stop_trace()
      self._on = False
      print(f"trace of steps {self._first} to {self._last}: {self._folder}")
