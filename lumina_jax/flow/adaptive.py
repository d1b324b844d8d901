"""Dormand-Prince 5(4): steps as long as the error of each sample allows."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import (
  State,
  Tableau,
  Velocity,
  advance,
  begin,
  stages,
)
from lumina_jax.flow.samples import Samples

# Dormand and Prince 1980, table 2. The last stage is the slope at the new
# state, so an accepted step hands it to the next one.
DORMAND_PRINCE = Tableau(
  a=(
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
  ),
  b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
  order=5,
)
# What the fifth order step has more than the fourth order one within it.
ERROR = (
  71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40,
)  # fmt: skip
# How much of the longest allowed step is taken, and how fast steps change
# (Hairer, Norsett and Wanner 1993, section II.4).
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
FIRST = 0.05  # The first step tried, as a share of the whole.


class _Steps(NamedTuple):
  """Where each sample is: time and next step `[*T]`, and the slope there."""

  time: jax.Array
  h: jax.Array
  slope: Any


@dataclasses.dataclass(frozen=True)
class DormandPrince:
  """Every sample has steps of its own, whoever shares its row or batch.

  Of the times only the first and the last matter; none between or beyond them
  is stepped to. All samples are evaluated until the last one has arrived, in a
  loop that knows no reverse-mode derivative. States want float32: in bfloat16
  their own rounding is larger than the errors allowed.

  Attributes:
    rtol: error allowed in a step, relative to the state.
    atol: the same in the state's units. The error of a sample is the root of
      its mean square in units of atol + rtol |x|.
    max_evaluations: of the velocity in one solve; samples that would need more
      are told as `State.behind`.
    tries: steps tried before it hands the state back, to be gone on with; None
      = until all have arrived. Whoever watches takes 1: the steps, and so the
      picture, stay what they are, with one more evaluation each.
  """

  rtol: float = 1e-3
  atol: float = 1e-6
  max_evaluations: int = 2000
  tries: int | None = None

  order = 5
  evaluations = 6  # Of a step that is tried, and one more at the start.

  def __post_init__(self):
    for name in ("rtol", "atol"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    if self.max_evaluations < 7:
      raise ValueError(
        f"max_evaluations = {self.max_evaluations}: the first step takes 7"
      )

  def start(self, x: Any, time: jax.Array) -> State:
    """The state at times[0]; the first step is not chosen yet."""
    return begin(x, time, memory=jnp.zeros_like(time))

  def integrate(
    self, velocity: Velocity, state: State, times: jax.Array, samples: Samples
  ) -> State:
    """From wherever each sample is to times[-1], or as far as `tries` go."""
    end = times[-1]
    h = jnp.where(state.memory == 0, FIRST * (end - state.time), state.memory)
    steps = _Steps(state.time, h, velocity(state.x, state.time))
    most = self.max_evaluations - self.evaluations

    def unfinished(carry):
      _, steps, evaluations, tried = carry
      more = jnp.any(steps.time != end) & (evaluations <= most)
      return more if self.tries is None else more & (tried < self.tries)

    def step(carry):
      x, steps, evaluations, tried = carry
      x, steps = self._step(velocity, x, steps, end, samples)
      return x, steps, evaluations + self.evaluations, tried + 1

    x, steps, evaluations, _ = jax.lax.while_loop(
      unfinished, step, (state.x, steps, state.evaluations + 1, 0)
    )
    behind = (steps.time != end) & (evaluations > most)
    return State(x, steps.time, evaluations, behind, steps.h)

  def _step(self, velocity, x, steps, end, samples):
    """Tries a step of every sample and keeps those whose error is small."""
    left = end - steps.time
    last = jnp.abs(steps.h) >= jnp.abs(left)
    h = jnp.where(last, left, steps.h)
    slopes = stages(
      DORMAND_PRINCE, velocity, x, steps.time, h, samples, first=steps.slope
    )
    spread = samples.spread(h)
    there = advance(x, spread, DORMAND_PRINCE.b, slopes)
    error = self._error(x, there, spread, slopes, samples)
    good = error <= 1
    factor = SAFETY * jnp.maximum(error, 1e-10) ** (-1 / DORMAND_PRINCE.order)
    factor = jnp.clip(factor, SHRINK, jnp.where(good, GROW, 1.0))
    # What is not finite cannot be said to be small.
    factor = jnp.where(jnp.isfinite(error), factor, SHRINK)
    # A step cut short by the end says nothing against longer ones.
    longer = jnp.where(last & good, steps.h, h * factor.astype(h.dtype))
    time = jnp.where(last, end, steps.time + h)
    time = jnp.where(good, time, steps.time)
    keep = samples.spread(good)
    choose = lambda new, old: jax.tree.map(jnp.where, keep, new, old)  # noqa: E731
    slope = choose(slopes[-1], steps.slope)
    return choose(there, x), _Steps(time, longer, slope)

  def _error(self, x, there, h, slopes, samples):
    """`[*T]`: root mean square of each sample's error in allowed units."""

    def square(x, there, error):
      size = jnp.maximum(jnp.abs(x), jnp.abs(there))
      return (error / (self.atol + self.rtol * size)) ** 2

    zero = jax.tree.map(lambda k: jnp.zeros_like(k), slopes[0])
    error = advance(zero, h, ERROR, slopes)
    squares = jax.tree.map(square, x, there, error)
    return jnp.sqrt(samples.mean(squares))
