"""Time grids of solvers, from noise at 0 to data at 1.

A grid of N steps has N + 1 times. Lumina-T2X counts the times, so its "N steps"
are N - 1 steps here.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.files.suggest import check_name


def uniform(steps: int) -> jax.Array:
  """`f32[steps + 1]` equidistant times from 0 to 1."""
  return jnp.linspace(0.0, 1.0, steps + 1)


def sigmoid(
  steps: int, center: float = 0.6, early: float = 6.0, late: float = 20.0
) -> jax.Array:
  """`f32[steps + 1]` times with small steps near noise and near data.

  t(n) = s(k (n - center)) for n from 0 to 1, with k = early before the center,
  k = late after it, and s the logistic function, rescaled to run from 0 to 1.
  Lumina-Next (section 2.3) names such a grid and its three numbers without the
  formula; this is a reconstruction.
  """
  n = uniform(steps)
  rate = jnp.where(n <= center, early, late)
  t = jax.nn.sigmoid(rate * (n - center))
  return (t - t[0]) / (t[-1] - t[0])


SCHEDULES = {"uniform": uniform, "sigmoid": sigmoid}
DIFFUSERS = "diffusers"


def get_schedule(name: str) -> Callable[[int], jax.Array]:
  """The schedule of that name, a function of the number of steps.

  Raises:
    ValueError: for an unknown name, with near names.
  """
  if name == "rational":
    raise ValueError(
      "schedule 'rational' is 'uniform' with a shift: set shift instead"
    )
  check_name("schedule", name, [*SCHEDULES, DIFFUSERS])
  return SCHEDULES[name]


def diffusers(steps: int, factor: float) -> jax.Array:
  """The `f32[steps + 1]` times of diffusers' FlowMatchEulerDiscreteScheduler.

  Its last step but one ends at the last training step, a noise level of 1 /
  1000, and it applies the shift to that end twice.
  """
  shifted = lambda noise: factor * noise / (1 + (factor - 1) * noise)  # noqa: E731
  noise = shifted(jnp.linspace(1.0, shifted(1e-3), steps))
  return jnp.append(1 - noise, 1.0)


def shift(times: jax.Array, factor: jax.Array | float) -> jax.Array:
  """t / (t + f - f t): f > 1 spends more steps near noise.

  (Lumina-T2X, section 2.4 and its time_shifting_factor; with noise level 1 - t,
  the `shift` of diffusers. Lumina-Next, section 2.3, calls shifted uniform
  times the rational schedule.)
  """
  return times / (times + factor * (1 - times))  # Exactly 1 at 1.


def shift_factor(tokens: int, base: int) -> float:
  """Factor of `shift` for a size, sqrt(tokens / base).

  Larger samples keep more of their signal under the same noise, so they take
  more steps near noise (Esser et al. 2024, equation 23).

  Args:
    tokens: number of tokens of a sample.
    base: number of tokens with factor 1.
  """
  return (tokens / base) ** 0.5


def tail(times: np.ndarray, strength: float) -> np.ndarray:
  """The last part of a grid, for a solve that starts from a noised sample.

  It has steps * strength steps, rounded up. Where that is a whole number, it
  consists of the grid's own last times.

  Args:
    times: `f32[steps + 1]`, on the host.
    strength: denoising strength, the share to keep; above 0 and at most 1.
  """
  steps = len(times) - 1
  # Slightly less, so that a rounding error adds no step.
  count = max(1, math.ceil(steps * strength - 1e-6))
  place = np.linspace(steps * (1 - strength), steps, count + 1)
  return np.interp(place, np.arange(steps + 1), times).astype(np.float32)
