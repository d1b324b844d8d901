"""Time grids of a call, from a name or from explicit times."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from lumina_jax.flow import schedule as schedules
from lumina_jax.sampling.options import SamplingOptions


@dataclasses.dataclass(frozen=True)
class TimeGrid:
  """The times of a solve; each size of a sample may shift them differently.

  Attributes:
    times: `f32[steps + 1]` before the shift, from noise to data.
    shift: of the times; 1 = none.
    shift_tokens: tokens for which the shift is meant; 0 = all sizes.
    strength: share of the grid that is solved, its last part.
  """

  times: np.ndarray
  shift: float = 1.0
  shift_tokens: int = 0
  strength: float = 1.0

  @property
  def steps(self) -> int:
    """Number of steps that run."""
    return len(self.for_tokens(1)) - 1

  def for_tokens(self, tokens: int) -> np.ndarray:
    """Times `f32[steps + 1]` of a sample of so many tokens."""
    factor = self.shift
    if self.shift_tokens:
      factor *= schedules.shift_factor(tokens, self.shift_tokens)
    times = schedules.shift(self.times, np.float32(factor))
    return schedules.tail(times, self.strength)


def time_grid(options: SamplingOptions, strength: float = 1.0) -> TimeGrid:
  """The time grid of a call.

  Args:
    options: its schedule or sigmas, steps and shift.
    strength: denoising strength; 1 without an initial image.

  Raises:
    ValueError: if explicit times are out of order or out of range, or options
      contradict each other.
  """
  shift, tokens = options.shift, options.shift_tokens
  if options.sigmas:
    times = _from_sigmas(options.sigmas)
  elif not isinstance(options.schedule, str):
    # Explicit times are meant as they are.
    times, shift, tokens = _explicit(options.schedule), 1.0, 0
  elif options.schedule == schedules.DIFFUSERS:
    if tokens:
      raise ValueError(
        f"schedule = 'diffusers' and shift_tokens = {tokens}: its scheduler "
        "shifts all sizes alike; choose another schedule"
      )
    times, shift = schedules.diffusers(options.num_inference_steps, shift), 1.0
  else:
    times = schedules.get_schedule(options.schedule)(
      options.num_inference_steps
    )
  return TimeGrid(np.asarray(times, np.float32), shift, tokens, strength)


def _explicit(times: Sequence[float]) -> np.ndarray:
  rising = all(a < b for a, b in itertools.pairwise(times))
  if len(times) < 2 or not rising or (times[0], times[-1]) != (0, 1):
    raise ValueError(
      f"schedule = {tuple(times)}: must be a name, or times that rise from 0 "
      "(noise) to 1 (data)"
    )
  return np.asarray(times, np.float32)


def _from_sigmas(sigmas: Sequence[float]) -> np.ndarray:
  falling = sorted(set(sigmas), reverse=True) == list(sigmas)
  if not falling or not 0 < sigmas[-1] <= sigmas[0] <= 1:
    raise ValueError(
      f"sigmas = {tuple(sigmas)}: must be noise levels that fall from at most "
      "1 and stay above 0"
    )
  return 1 - np.asarray([*sigmas, 0.0], np.float32)
