"""Rotary positions on any number of axes.

B rows, L tokens, H heads, K head channels, A axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(head_dim: int, axes: int, theta: float) -> np.ndarray:
  """Returns `f32[K/2]`, the angle per unit of position of each channel pair.

  Pair j belongs to axis j mod A and turns with theta^(-2 A floor(j / A) / K).
  One axis: RoFormer, equation 15. Two axes: rows on even pairs and columns on
  odd ones, as Next-DiT has it (Lumina-Next, section 2.1).
  """
  pair = np.arange(head_dim // 2)
  exponent = -2.0 * axes * (pair // axes) / head_dim
  return (theta**exponent).astype(np.float32)


def angles(ids: jax.Array, head_dim: int, theta: float) -> jax.Array:
  """Positions `i32[B, L, A]` -> angles `f32[B, L, K/2]`."""
  axes = ids.shape[-1]
  of_pair = np.arange(head_dim // 2) % axes
  position = ids.astype(jnp.float32)[..., of_pair]
  return position * frequencies(head_dim, axes, theta)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Rotates channel pairs (2j, 2j + 1) of `[B, L, H, K]` by `f32[B, L, K/2]`.

  Computes in float32 and returns x's dtype.
  """
  cos = jnp.cos(angles)[:, :, None, :]
  sin = jnp.sin(angles)[:, :, None, :]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  real, imaginary = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack(
    [real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1
  )
  return turned.reshape(x.shape).astype(x.dtype)
