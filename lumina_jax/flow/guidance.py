"""Classifier-free guidance: conditional and unconditional velocity as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import Velocity
from lumina_jax.flow.samples import TOGETHER, Samples


class Guidance(NamedTuple):
  """Scale, interval and limits of guidance; all traced.

  Attributes:
    scale: s of each sample, `f32[*T]`; 1 = the conditional velocity alone.
    start: time at which guidance starts, `f32[*T]` (Kynkaanniemi et al. 2024,
      section 3); None = always on.
    stop: time before which guidance stops, `f32[*T]`; 1 includes the end. With
      start = 0 this is the truncation of Lumina-Image-2.0, section 3.3. None =
      always on.
    renorm: r; the guided velocity is scaled down to at most r times the length
      of the conditional one, in the norm over a sample (the same section).
      Infinity = no limit.
    channels: broadcasts against x: 1 where guidance acts, 0 where the
      conditional velocity stays. The original guides three channels of four.
  """

  scale: jax.Array | float
  start: jax.Array | float | None = None
  stop: jax.Array | float | None = None
  renorm: jax.Array | float = jnp.inf
  channels: jax.Array | float = 1.0

  @property
  def always(self) -> bool:
    """Whether guidance acts at all times."""
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
  """v = v_u + s (v_c - v_u) (Ho and Salimans 2022, equation 6), renormed.

  Args:
    conditional: v_c, like x.
    unconditional: v_u, like x.
    t: times `f32[*T]`.
    guidance: s and its limits.
    samples: the layout of x.
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
  both: Callable[[jax.Array, jax.Array, Any], tuple[Any, Any]],
  conditional: Velocity,
  guidance: Guidance,
  samples: Samples = TOGETHER,
) -> Velocity:
  """A guided velocity; evaluates both branches only while guidance acts.

  Args:
    both: (x, t, memory) -> ((v_c, v_u), memory), from one batch.
    conditional: the conditional velocity alone; takes and returns the memory of
      both branches, so that shapes stay fixed.
    guidance: how far, when and where to steer.
    samples: the layout of x.
  """

  def steered(x: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
    pair, memory = both(x, t, memory)
    return combine(*pair, t, guidance, samples), memory

  def velocity(x: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
    plain = jnp.all(guidance.at(t) == 1)
    return jax.lax.cond(plain, conditional, steered, x, t, memory)

  return steered if guidance.always else velocity
