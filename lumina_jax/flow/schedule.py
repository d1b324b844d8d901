"""Time grids: where between noise and data a solver steps.

A grid of N steps has N + 1 times. The original counts those times, so that its
"N steps" are N - 1 of ours.
"""

from __future__ import annotations

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

  t(n) = s(k (n - center)) for n from 0 to 1, k = early before the center and
  late behind it, s the logistic function, stretched to end at 0 and 1. Lumina-
  Next (section 2.3) names such a grid and its three numbers, but neither the
  paper nor its code was to be had with the formula: this is a reconstruction.
  """
  n = uniform(steps)
  rate = jnp.where(n <= center, early, late)
  t = jax.nn.sigmoid(rate * (n - center))
  return (t - t[0]) / (t[-1] - t[0])


SCHEDULES = {"uniform": uniform, "sigmoid": sigmoid}
DIFFUSERS = "diffusers"


def find(name: str) -> Callable[[int], jax.Array]:
  """The grid of that name, a function of the number of steps.

  Raises:
    ValueError: if there is none; near names are suggested.
  """
  if name == "rational":
    raise ValueError(
      "schedule 'rational' is 'uniform' with a shift: give shift in its place"
    )
  check_name("schedule", name, [*SCHEDULES, DIFFUSERS])
  return SCHEDULES[name]


def diffusers(steps: int, factor: float) -> jax.Array:
  """The `f32[steps + 1]` times of diffusers' FlowMatchEulerDiscreteScheduler.

  Its last step but one ends at the last step of training, 1/1000 of noise, and
  its shift moves that end twice.
  """
  shifted = lambda noise: factor * noise / (1 + (factor - 1) * noise)  # noqa: E731
  noise = shifted(jnp.linspace(1.0, shifted(1e-3), steps))
  return jnp.append(1 - noise, 1.0)


def shift(times: jax.Array, factor: jax.Array | float) -> jax.Array:
  """t / (t + f - f t): f > 1 spends more steps near noise.

  (Lumina-T2X, section 2.4; the original's time_shifting_factor and, with noise
  level 1 - t, the `shift` of diffusers. Shifted uniform times are what Lumina-
  Next, section 2.3, calls the rational grid.)
  """
  return times / (times + factor * (1 - times))  # Exactly 1 at 1.


def by_tokens(tokens: int, base: int) -> float:
  """Factor of `shift` for a size, sqrt(tokens / base).

  More tokens show the same noise less, so larger pictures want more steps near
  noise (Esser et al. 2024, equation 23).
  """
  return (tokens / base) ** 0.5


def rest(times: np.ndarray, strength: float) -> np.ndarray:
  """The last share of a grid, for a solve that begins between its ends.

  As many steps as that share has, rounded up; if it is whole, the grid's own
  last times.

  Args:
    times: `f32[steps + 1]`, on the host.
    strength: the share, above 0 and at most 1.
  """
  steps = len(times) - 1
  # A hair less, so that rounding makes no step of its own.
  count = max(1, math.ceil(steps * strength - 1e-6))
  place = np.linspace(steps * (1 - strength), steps, count + 1)
  return np.interp(place, np.arange(steps + 1), times).astype(np.float32)
