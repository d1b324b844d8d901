"""Dormand-Prince 5(4): adaptive steps, for each sample its own."""

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
# The fifth-order step minus the embedded fourth-order step.
ERROR = (
  71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40,
)  # fmt: skip
# Safety factor and limits of the change of a step
# (Hairer, Norsett and Wanner 1993, section II.4).
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
FIRST = 0.05  # The first step tried, as a share of the whole.


class _Steps(NamedTuple):
  """The progress of each sample.

  Attributes:
    x: the state.
    time: `[*T]`.
    h: length of the next step, `[*T]`.
    slope: v(x, time).
    memory: of the velocity.
  """

  x: Any
  time: jax.Array
  h: jax.Array
  slope: Any
  memory: Any


@dataclasses.dataclass(frozen=True)
class DormandPrince:
  """Adapts the steps of each sample to its error, whatever shares its batch.

  Only the first and the last time matter; the solver chooses those between.
  All samples are evaluated until the last one arrives, in a loop without a
  reverse-mode derivative. States should be float32: the rounding of bfloat16
  exceeds the errors allowed. A rejected step restores the sample's memory of
  the velocity.

  Attributes:
    rtol: error allowed in a step, relative to the state.
    atol: error allowed in a step, in the state's units. The error of a sample
      is the root of its mean square in units of atol + rtol |x|.
    max_evaluations: of the velocity in one solve; samples that need more are
      reported in `State.behind`.
    tries: steps to try before `integrate` returns a state to continue from;
      None = until all samples arrive. Callbacks use 1: steps and results stay
      the same, with one more evaluation each.
  """

  rtol: float = 1e-3
  atol: float = 1e-6
  max_evaluations: int = 2000
  tries: int | None = None

  order = 5
  evaluations = 6  # For each step tried; one more at the start.

  def __post_init__(self):
    for name in ("rtol", "atol"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    if self.max_evaluations < 7:
      raise ValueError(
        f"max_evaluations = {self.max_evaluations}: the first step takes 7"
      )

  def start(self, x: Any, time: jax.Array, memory: Any = ()) -> State:
    """The state at times[0]; the first step is not chosen yet."""
    return begin(x, time, jnp.zeros_like(time), memory)

  def integrate(
    self, velocity: Velocity, state: State, times: jax.Array, samples: Samples
  ) -> State:
    """Integrates each sample to times[-1], or for `tries` steps."""
    end, h = times[-1], state.solver_memory
    h = jnp.where(h == 0, FIRST * (end - state.time), h)
    slope, memory = velocity(state.x, state.time, state.velocity_memory)
    steps = _Steps(state.x, state.time, h, slope, memory)
    most = self.max_evaluations - self.evaluations

    def unfinished(carry):
      steps, evaluations, tried = carry
      more = jnp.any(steps.time != end) & (evaluations <= most)
      return more if self.tries is None else more & (tried < self.tries)

    def step(carry):
      steps, evaluations, tried = carry
      steps = self._step(velocity, steps, end, samples)
      return steps, evaluations + self.evaluations, tried + 1

    steps, evaluations, _ = jax.lax.while_loop(
      unfinished, step, (steps, state.evaluations + 1, 0)
    )
    behind = (steps.time != end) & (evaluations > most)
    return State(
      steps.x, steps.time, evaluations, behind, steps.h, steps.memory
    )

  def _step(self, velocity, steps, end, samples) -> _Steps:
    """Tries a step of every sample and accepts those with a small error."""
    x, left = steps.x, end - steps.time
    last = jnp.abs(steps.h) >= jnp.abs(left)
    h = jnp.where(last, left, steps.h)
    slopes, memory = stages(
      DORMAND_PRINCE,
      velocity,
      x,
      steps.time,
      h,
      steps.memory,
      samples,
      first=steps.slope,
    )
    spread = samples.spread(h)
    there = advance(x, spread, DORMAND_PRINCE.b, slopes)
    error = self._error(x, there, spread, slopes, samples)
    good = error <= 1
    factor = SAFETY * jnp.maximum(error, 1e-10) ** (-1 / DORMAND_PRINCE.order)
    factor = jnp.clip(factor, SHRINK, jnp.where(good, GROW, 1.0))
    # An error that is not finite shrinks the step.
    factor = jnp.where(jnp.isfinite(error), factor, SHRINK)
    # A step that the end cut short does not limit later ones.
    longer = jnp.where(last & good, steps.h, h * factor.astype(h.dtype))
    time = jnp.where(last, end, steps.time + h)
    time = jnp.where(good, time, steps.time)
    keep = samples.spread(good)
    choose = lambda new, old: jax.tree.map(jnp.where, keep, new, old)  # noqa: E731
    return _Steps(
      choose(there, x),
      time,
      longer,
      choose(slopes[-1], steps.slope),
      samples.select(good, memory, steps.memory),
    )

  def _error(self, x, there, h, slopes, samples):
    """`[*T]`: root mean square error of each sample, 1 = just allowed."""

    def square(x, there, error):
      size = jnp.maximum(jnp.abs(x), jnp.abs(there))
      return (error / (self.atol + self.rtol * size)) ** 2

    zero = jax.tree.map(lambda k: jnp.zeros_like(k), slopes[0])
    error = advance(zero, h, ERROR, slopes)
    squares = jax.tree.map(square, x, there, error)
    return jnp.sqrt(samples.mean(squares))
