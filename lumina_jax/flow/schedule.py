"""Time grids: where between noise and data a solver steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def uniform(steps: int) -> jax.Array:
  """`f32[steps + 1]` equidistant times from 0 to 1.

  A step is one integration step; the original counts grid points, so that its
  "N steps" are N - 1 of these.
  """
  return jnp.linspace(0.0, 1.0, steps + 1)


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
  level 1 - t, the `shift` of diffusers.)
  """
  return times / (times + factor - factor * times)
