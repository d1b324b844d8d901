"""Classifier-free guidance: conditional and unconditional velocity as one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import Velocity
from lumina_jax.flow.samples import SINGLE, Samples


class Guidance(NamedTuple):
  """Scale, interval and limits of guidance; all traced.

  Attributes:
    scale: s of each sample, `f32[*T]`; 1 = the conditional velocity alone.
    start: time at which guidance starts, `f32[*T]` (Kynkaanniemi et al. 2024,
      section 3); None = always on.
    stop: time at which guidance stops, `f32[*T]`; 1 includes the end. With
      start = 0 this is the truncation of Lumina-Image-2.0, section 3.3. None =
      always on.
    renorm: r; scales the guided velocity down to at most r times the length of
      the conditional one, in the norm over a sample (the same section).
      Infinity = no limit.
    channels: broadcasts against x: 1 where guidance acts, 0 where the
      conditional velocity stays. Lumina-T2X guides three channels of four.
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

  def scale_at(self, t: jax.Array) -> jax.Array:
    """The scale `f32[*T]` at times `f32[*T]`; 1 outside the interval."""
    scale = jnp.broadcast_to(self.scale, jnp.shape(t))
    if self.start is not None:
      scale = jnp.where(t >= self.start, scale, 1.0)
    if self.stop is not None:
      to_the_end = jnp.asarray(self.stop) >= 1
      scale = jnp.where((t < self.stop) | to_the_end, scale, 1.0)
    return scale


def combine(
  conditional: jax.Array,
  unconditional: jax.Array,
  t: jax.Array,
  guidance: Guidance,
  samples: Samples = SINGLE,
) -> jax.Array:
  """v = v_u + s (v_c - v_u) (Ho and Salimans 2022, equation 6), renormed.

  Args:
    conditional: v_c, like x.
    unconditional: v_u, like x.
    t: times `f32[*T]`.
    guidance: s and its limits.
    samples: layout of x.

  Returns:
    The guided velocity, like x; exactly v_c where s is 1.
  """
  scale = guidance.scale_at(t)
  more = samples.spread(scale - 1) * guidance.channels
  guided = conditional + more * (conditional - unconditional)
  allowed = guidance.renorm**2 * samples.mean(conditional**2)
  square = samples.mean(guided**2)
  long = (square > allowed) & (scale != 1)
  shrink = jnp.sqrt(jnp.where(long, allowed, 1) / jnp.where(long, square, 1))
  return guided * samples.spread(shrink)


def classifier_free(
  both: Callable[[jax.Array, jax.Array, Any], tuple[Any, Any]],
  conditional: Velocity,
  guidance: Guidance,
  samples: Samples = SINGLE,
) -> Velocity:
  """A guided velocity that evaluates both branches only while guidance acts.

  The unconditional half of a sample's memory changes only while guidance acts
  on that sample, whatever the times of the others.

  Args:
    both: (x, t, memory) -> ((v_c, v_u), memory), from one batch.
    conditional: the conditional velocity alone. It takes and returns the memory
      of both branches, so that shapes stay fixed.
    guidance: scale, interval and limits.
    samples: layout of x.
  """

  def guided(x: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
    velocities, memory = both(x, t, memory)
    return combine(*velocities, t, guidance, samples), memory

  if guidance.always:
    return guided

  def some_guided(x: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
    slope, after = guided(x, t, memory)
    acts = guidance.scale_at(t) != 1
    if acts.ndim:  # Otherwise guidance acts on all samples or on none.
      keep = jnp.concatenate([jnp.ones_like(acts), acts])
      after = samples.select(keep, after, memory)
    return slope, after

  def velocity(x: jax.Array, t: jax.Array, memory: Any) -> tuple[Any, Any]:
    none = jnp.all(guidance.scale_at(t) == 1)
    return jax.lax.cond(none, conditional, some_guided, x, t, memory)

  return velocity
