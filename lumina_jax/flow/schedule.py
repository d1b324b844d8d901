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


def shift(times: jax.Array, factor: jax.Array | float) -> jax.Array:
  """t / (t + f - f t): f > 1 spends more steps near noise.

  (Lumina-T2X, section 2.4; the original's time_shifting_factor and, with noise
  level 1 - t, the `shift` of diffusers.)
  """
  return times / (times + factor - factor * times)
