"""Dormand-Prince 5(4): adaptive steps, chosen for each sample by itself."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.files import schema
from lumina_jax.flow.ode import State, Tableau, advance, initial_state, stages

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
FIRST_STEP = 0.05  # Length of the first step tried, as a share of the whole.


class _Progress(NamedTuple):
  """Where each sample is.

  Attributes:
    x: state.
    time: `[*T]`.
    h: length of the next step, `[*T]`.
    slope: v(x, time), like x.
    memory: memory of the velocity after the evaluation of `slope`.
    before: memory of the velocity before it.
  """

  x: Any
  time: jax.Array
  h: jax.Array
  slope: Any
  memory: Any
  before: Any


@dataclasses.dataclass(frozen=True)
class DormandPrince:
  """Adapts the steps of each sample to its error, independently of the others.

  Only the first and the last time matter; the solver chooses those between.
  All samples are evaluated until the last one arrives, in a loop without a
  reverse-mode derivative. States should be float32: the rounding of bfloat16
  exceeds the tolerances.

  The memory of the velocity holds the evaluations of accepted steps only: a
  rejected step, or one that waits for other samples, restores it per sample.
  Each accepted step ends with the evaluation that the next one begins with;
  `State.velocity_memory` excludes it, since the next `integrate` repeats it.

  Attributes:
    rtol: error allowed in a step, relative to the state.
    atol: error allowed in a step, in units of the state. The error of a sample
      is the root of its mean square in units of atol + rtol |x|.
    max_evaluations: evaluations of the velocity allowed in one solve. Samples
      that need more are reported in `State.behind`.
    tries: steps to try before `integrate` returns; None = until all samples
      arrive. Callbacks use 1, which changes neither steps nor results and costs
      one more evaluation each.

  Raises:
    ValueError: for a tolerance that is not positive, or fewer than the 7
      evaluations of one step.
  """

  rtol: float = 1e-3
  atol: float = 1e-6
  max_evaluations: int = 2000
  tries: int | None = None

  order = 5
  evaluations = 6  # Per step tried, after one at the start.

  def __post_init__(self):
    schema.check_positive(self, "rtol", "atol")
    if self.max_evaluations < 7:
      raise ValueError(
        f"max_evaluations = {self.max_evaluations}: the first step takes 7"
      )

  def start(self, x: Any, time: jax.Array, memory: Any = ()) -> State:
    """The state at times[0]; `integrate` chooses the first step."""
    return initial_state(x, time, jnp.zeros_like(time), memory)

  def integrate(self, velocity, state, times, samples) -> State:
    """See `Solver.integrate`; takes `tries` steps at most, if set."""
    end, h, before = times[-1], state.solver_memory, state.velocity_memory
    h = jnp.where(h == 0, FIRST_STEP * (end - state.time), h)
    slope, memory = velocity(state.x, state.time, before)
    progress = _Progress(state.x, state.time, h, slope, memory, before)
    limit = self.max_evaluations - self.evaluations

    def unfinished(carry):
      progress, evaluations, tried = carry
      more = jnp.any(progress.time != end) & (evaluations <= limit)
      return more if self.tries is None else more & (tried < self.tries)

    def step(carry):
      progress, evaluations, tried = carry
      progress = self._step(velocity, progress, end, samples)
      return progress, evaluations + self.evaluations, tried + 1

    progress, evaluations, _ = jax.lax.while_loop(
      unfinished, step, (progress, state.evaluations + 1, 0)
    )
    behind = (progress.time != end) & (evaluations > limit)
    return State(
      progress.x,
      progress.time,
      evaluations,
      behind,
      progress.h,
      progress.before,
    )

  def _step(self, velocity, old, end, samples) -> _Progress:
    """Tries a step of every sample and accepts those with a small error."""
    left = end - old.time
    last = jnp.abs(old.h) >= jnp.abs(left)
    h = jnp.where(last, left, old.h)
    until = jnp.where(last, end, old.time + h)
    slopes, before = stages(
      DORMAND_PRINCE.a[:-1],
      velocity,
      old.x,
      old.time,
      h,
      old.memory,
      samples,
      first=old.slope,
    )
    spread = samples.spread(h)
    x = advance(old.x, spread, DORMAND_PRINCE.a[-1], slopes)
    slope, memory = velocity(x, until, before)
    # Constants are equal in both memories. `select` skips equal arrays.
    before = jax.tree.map(
      lambda new, memory, before: before if new is memory else new,
      before,
      old.memory,
      old.before,
    )
    error = self._error(old.x, x, spread, [*slopes, slope], samples)
    good = error <= 1
    factor = SAFETY * jnp.maximum(error, 1e-10) ** (-1 / DORMAND_PRINCE.order)
    factor = jnp.clip(factor, SHRINK, jnp.where(good, GROW, 1.0))
    # An error that is not finite shrinks the step.
    factor = jnp.where(jnp.isfinite(error), factor, SHRINK)
    # A step that the end cut short does not limit later ones.
    longer = jnp.where(last & good, old.h, h * factor.astype(h.dtype))
    accept = good & (old.time != end)
    keep = samples.spread(accept)
    return _Progress(
      jax.tree.map(jnp.where, keep, x, old.x),
      jnp.where(accept, until, old.time),
      longer,
      jax.tree.map(jnp.where, keep, slope, old.slope),
      samples.select(accept, memory, old.memory),
      samples.select(accept, before, old.before),
    )

  def _error(self, x, there, h, slopes, samples):
    """`[*T]`: root mean square error of each sample, 1 = just allowed."""

    def square(x, there, error):
      size = jnp.maximum(jnp.abs(x), jnp.abs(there))
      return (error / (self.atol + self.rtol * size)) ** 2

    zero = jax.tree.map(jnp.zeros_like, slopes[0])
    error = advance(zero, h, ERROR, slopes)
    return jnp.sqrt(samples.mean(jax.tree.map(square, x, there, error)))
