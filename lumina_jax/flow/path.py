"""Probability paths from noise to data.

Time runs from t = 0 (noise x0) to t = 1 (data x1), everywhere in this house.
"""

from __future__ import annotations

import jax


def interpolate(x0: jax.Array, x1: jax.Array, t: jax.Array) -> jax.Array:
  """x_t = t x1 + (1 - t) x0, the linear path (Lumina-T2X, section 2.1)."""
  return t * x1 + (1 - t) * x0


def velocity(x0: jax.Array, x1: jax.Array) -> jax.Array:
  """dx_t / dt = x1 - x0 of the linear path, what the network predicts."""
  return x1 - x0
