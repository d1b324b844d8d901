"""The times of a call, from a name or from numbers that the caller brings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lumina_jax.flow import schedule as schedules
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling.program import SamplingConfig


@dataclasses.dataclass(frozen=True)
class TimeGrid:
  """Between which times pictures are solved; each size may have its own.

  Attributes:
    times: `f32[steps + 1]` before they are shifted, from noise to data.
    shift: of them; 1 = none.
    shift_tokens: as in SamplingConfig.
    strength: share of the grid that is solved, its last one.
  """

  times: np.ndarray
  shift: float = 1.0
  shift_tokens: int = 0
  strength: float = 1.0

  @property
  def steps(self) -> int:
    """How many are run."""
    return len(self.of(1)) - 1

  def of(self, tokens: int) -> np.ndarray:
    """`f32[steps + 1]` times of a picture of so many tokens."""
    factor = self.shift
    if self.shift_tokens:
      factor *= schedules.by_tokens(tokens, self.shift_tokens)
    times = schedules.shift(self.times, np.float32(factor))
    return schedules.rest(times, self.strength)


def choose(
  sampling: SamplingConfig,
  schedule: str | Sequence[float] | None = None,
  sigmas: Sequence[float] | None = None,
  strength: float = 1.0,
) -> TimeGrid:
  """The grid of a call.

  Args:
    sampling: its schedule, steps and shift.
    schedule: times that take the place of its schedule, rising from 0 to 1;
      neither a name nor None is looked at.
    sigmas: noise levels that do, falling from at most 1, without the last 0.
    strength: as in `TimeGrid`.

  Raises:
    ValueError: for numbers that are no such times, or two kinds at once.
  """
  steps, shift = sampling.num_inference_steps, sampling.shift
  explicit = schedule is not None and not isinstance(schedule, str)
  if explicit and sigmas is not None:
    raise ValueError("schedule and sigmas: give one of them")
  if explicit:
    # Whoever names the times means these, as they are.
    times, shift, base = _rising(schedule), 1.0, 0
  elif sigmas is not None:
    times, base = _from_levels(sigmas), sampling.shift_tokens
  elif sampling.schedule == schedules.DIFFUSERS:
    times, shift, base = schedules.diffusers(steps, shift), 1.0, 0
    if sampling.shift_tokens:
      raise ValueError(
        f"schedule = 'diffusers' and shift_tokens = {sampling.shift_tokens}: "
        "its scheduler shifts all sizes alike; choose another schedule"
      )
  else:
    times = schedules.find(sampling.schedule)(steps)
    base = sampling.shift_tokens
  return TimeGrid(np.asarray(times, np.float32), shift, base, strength)


def _rising(times: Any) -> np.ndarray:
  found = [inputs.number(t, "schedule") for t in np.ravel(times)]
  rising = all(a < b for a, b in itertools.pairwise(found))
  if len(found) < 2 or not rising or (found[0], found[-1]) != (0, 1):
    raise ValueError(
      f"schedule {found}: a name, or times that rise from 0 (noise) to 1 (data)"
    )
  return np.asarray(found, np.float32)


def _from_levels(sigmas: Sequence[float]) -> np.ndarray:
  if not isinstance(sigmas, (list, tuple)) and np.ndim(sigmas) != 1:
    raise ValueError(
      f"sigmas = {sigmas!r}: noise levels, as [1.0, 0.6, 0.2]; what has a name "
      "is a schedule"
    )
  levels = [inputs.number(level, "sigmas") for level in sigmas]
  falling = sorted(set(levels), reverse=True) == levels
  if not levels or not falling or not 0 < levels[-1] <= levels[0] <= 1:
    raise ValueError(f"sigmas {levels}: noise levels falling from 1, above 0")
  return 1 - np.asarray([*levels, 0.0], np.float32)
