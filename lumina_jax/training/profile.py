"""Profiles some steps of a run."""

import re
from typing import Any

import jax
from etils import epath

FOLDER = "profile"


class Profiler:
  """Traces the steps first, ..., last of a run.

  To view a trace: `tensorboard --logdir=<workdir>/profile` with xprof
  installed, or ui.perfetto.dev for the .trace.json.gz.
  """

  def __init__(self, steps: str, workdir: epath.PathLike):
    """Plans a trace.

    Args:
      steps: "10:13" for steps 10 to 13; "" for none.
      workdir: workdir of the run, which gets a folder `profile`.

    Raises:
      ValueError: if `steps` is no range of steps.
    """
    self._folder = epath.Path(workdir) / FOLDER
    self._tracing = self._started = False
    self._first = self._last = 0
    if not steps:
      return
    match = re.fullmatch(r"(\d+):(\d+)", steps)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
      raise ValueError(
        f"profile_steps {steps!r}: write first:last, from 1, such as 10:13"
      )
    self._first, self._last = int(match[1]), int(match[2])

  def before_step(self, step: int) -> None:
    """Starts the trace if `step` is its first one."""
    if step == self._first:
      jax.profiler.start_trace(str(self._folder))
      self._tracing = self._started = True

  def after_step(self, step: int, metrics: Any) -> None:
    """Stops the trace if `step` is its last one, once `metrics` are ready."""
    if self._tracing and step >= self._last:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    """Stops a trace that the run has not reached the end of."""
    if self._first and not self._started:
      print(f"no trace: step {self._first} did not run this time")
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
      print(f"trace of steps {self._first} to {self._last}: {self._folder}")
