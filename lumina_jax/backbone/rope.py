"""Rotary positions on any number of axes, and rules to stretch them.

A rule says how fast each channel pair turns; beyond the sizes of training it
lets them turn slower. Rates are data of a sample, so no rule, scale or time
ever compiles anew.

B rows, L tokens, N samples a row, H heads, K head channels, A axes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rescale(NamedTuple):
  """Linear interpolation and NTK, together or one of them.

  rate_j = (ntk theta)^(-2 A floor(j / A) / K) / linear. Linear interpolation
  (Chen et al. 2023) crowds positions, NTK (Lumina-Next, section 2.1) slows the
  slow pairs only. Flag-DiT samples with `ntk` = the ratio of areas.

  Attributes:
    linear: a number, or `f32[B, N]`; the `rope_scaling_factor` of the original.
    ntk: likewise; its `ntk_factor`.
  """

  linear: jax.Array | float = 1.0
  ntk: jax.Array | float = 1.0

  def rates(self, time: jax.Array, head_dim: int, axes: int, theta: float):
    """Rates `f32[B, N, K/2]` at time `f32[B, N]`."""
    return _rates(time, head_dim, axes, theta, self.linear, self.ntk)


class Watershed(NamedTuple):
  """Next-DiT's time-aware rule: linear interpolation early, NTK later.

  Linear by `scale` while t < `at`, from there on NTK by `scale`: first the
  layout of the whole, then detail (Lumina-Next, section 2.1, in the form that
  its code has; the paper blends the two instead).

  Attributes:
    scale: ratio of sides, sqrt(area / trained area); a number or `f32[B, N]`.
    at: time from 0 (noise) to 1 (data) at which the rule changes.
  """

  scale: jax.Array | float
  at: jax.Array | float = 0.3

  def rates(self, time: jax.Array, head_dim: int, axes: int, theta: float):
    """Rates `f32[B, N, K/2]` at time `f32[B, N]`."""
    early = time < self.at
    linear = jnp.where(early, self.scale, 1.0)
    ntk = jnp.where(early, 1.0, self.scale)
    return _rates(time, head_dim, axes, theta, linear, ntk)


def frequencies(head_dim: int, axes: int, theta: float) -> np.ndarray:
  """Returns `f32[K/2]`, the angle per unit of position of each channel pair.

  Pair j belongs to axis j mod A and turns with theta^(-2 A floor(j / A) / K).
  One axis: RoFormer, equation 15. Two axes: rows on even pairs and columns on
  odd ones, as Next-DiT has it (Lumina-Next, section 2.1).
  """
  return (theta ** _exponents(head_dim, axes)).astype(np.float32)


def _exponents(head_dim: int, axes: int) -> np.ndarray:
  pair = np.arange(head_dim // 2)
  return -2.0 * axes * (pair // axes) / head_dim


def _rates(time, head_dim, axes, theta, linear, ntk) -> jax.Array:
  exponents = _exponents(head_dim, axes).astype(np.float32)
  each = functools.partial(jnp.broadcast_to, shape=jnp.shape(time))
  linear, ntk = each(linear)[..., None], each(ntk)[..., None]
  return frequencies(head_dim, axes, theta) * ntk**exponents / linear


def angles(ids: jax.Array, rates: jax.Array) -> jax.Array:
  """Positions `i32[B, L, A]` -> angles `f32[B, L, K/2]`.

  Rates are `f32[K/2]`, or `f32[B, L, K/2]` with 1 for B or L where all agree.
  """
  of_pair = np.arange(rates.shape[-1]) % ids.shape[-1]
  return ids.astype(jnp.float32)[..., of_pair] * rates


class Rotation(NamedTuple):
  """Attributes: cos and sin `f32[B, L, K/2]` of every token's angles."""

  cos: jax.Array
  sin: jax.Array


def rotation(angles: jax.Array) -> Rotation:
  """How every token turns, the same in every layer."""
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Turns channel pairs (2j, 2j + 1) of `[B, L, H, K]`.

  Computes in float32 and returns x's dtype.
  """
  cos, sin = (a[:, :, None, :] for a in rotation)
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  real, imaginary = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack(
    [real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1
  )
  return turned.reshape(x.shape).astype(x.dtype)
