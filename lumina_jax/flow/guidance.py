"""Guidance: two velocities, conditional and not, and one steered by both."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import Velocity
from lumina_jax.flow.samples import TOGETHER, Samples


class Guidance(NamedTuple):
  """How far, when and where to steer; all traced.

  Attributes:
    scale: s of each sample, `f32[*T]`; 1 = the conditional velocity alone.
    start: from which time on, `f32[*T]` (Kynkaanniemi et al. 2024, section 3);
      None = always.
    stop: before which time; 1 is behind all. From start = 0 on it is what
      Lumina-Image-2.0, section 3.3, calls truncation. None = always.
    renorm: r; the steered velocity gets no longer than r times the conditional
      one, in the norm over a sample (the same section). Infinity = any length.
    channels: broadcasts against x: 1 where guidance acts, 0 where the
      conditional velocity stays. The original steers three channels of four.
  """

  scale: jax.Array | float
  start: jax.Array | float | None = None
  stop: jax.Array | float | None = None
  renorm: jax.Array | float = jnp.inf
  channels: jax.Array | float = 1.0

  @property
  def always(self) -> bool:
    """Whether there is no time without it."""
    return self.start is None and self.stop is None

  def at(self, t: jax.Array) -> jax.Array:
    """The scale `f32[*T]` at times `f32[*T]`."""
    scale = jnp.broadcast_to(self.scale, jnp.shape(t))
    if self.start is not None:
      scale = jnp.where(t >= self.start, scale, 1.0)
    if self.stop is not None:
      last = jnp.asarray(self.stop) >= 1
      scale = jnp.where((t < self.stop) | last, scale, 1.0)
    return scale


def combine(
  conditional: jax.Array,
  unconditional: jax.Array,
  t: jax.Array,
  guidance: Guidance,
  samples: Samples = TOGETHER,
) -> jax.Array:
  """v = v_u + s (v_c - v_u) (Ho and Salimans 2022, equation 6), and no longer.

  Args:
    conditional: v_c, like x.
    unconditional: v_u, like x.
    t: times `f32[*T]`.
    guidance: s and its limits.
    samples: whose times these are.
  """
  scale = guidance.at(t)
  # From v_c, so that a scale of 1 gives exactly that.
  more = samples.spread(scale - 1) * guidance.channels
  steered = conditional + more * (conditional - unconditional)
  allowed = guidance.renorm**2 * samples.mean(conditional**2)
  square = samples.mean(steered**2)
  long = (square > allowed) & (scale != 1)
  shrink = jnp.sqrt(jnp.where(long, allowed, 1) / jnp.where(long, square, 1))
  return steered * samples.spread(shrink)


def classifier_free(
  both: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
  conditional: Velocity,
  guidance: Guidance,
  samples: Samples = TOGETHER,
) -> Velocity:
  """A steered velocity that asks for both only at times where it steers.

  Args:
    both: (x, t) -> conditional and unconditional velocity, from one batch.
    conditional: the first of them alone.
    guidance: how far, when and where.
    samples: whose times these are.
  """

  def steered(x: jax.Array, t: jax.Array) -> jax.Array:
    return combine(*both(x, t), t, guidance, samples)

  def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
    needless = jnp.all(guidance.at(t) == 1)
    return jax.lax.cond(needless, conditional, steered, x, t)

  return steered if guidance.always else velocity
