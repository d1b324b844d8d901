"""Solvers of dx = (v + D score) dt + sqrt(2 D) dW: the flow, stirred by noise.

Whatever the diffusion D(t) >= 0, x is distributed at every time as under
dx = v dt: the score draws together what the noise spreads (SiT, arXiv
2401.08740, section 2, whose w is 2 D). With a velocity that is not exact, fresh
noise gives later steps the chance to mend errors of earlier ones.

The score is -x0 / sigma of the noise x0 that x and v imply. Times rise: nothing
finite comes of falling ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumina_jax.files.suggest import check_name
from lumina_jax.flow.ode import ROUNDING, FixedSteps, State, Velocity
from lumina_jax.flow.path import (
  LINEAR,
  Path,
  convert,
  drift_variance,
)
from lumina_jax.flow.samples import Samples

# D(t) of a norm and a path: SiT, the original's compute_diffusion.
FORMS: dict[str, Callable[[jax.Array, float, Path], jax.Array]] = {
  "constant": lambda t, norm, path: norm * jnp.ones_like(t),
  "sbdm": lambda t, norm, path: norm * drift_variance(t, path),
  "sigma": lambda t, norm, path: norm * path.sigma(t),
  "linear": lambda t, norm, path: norm * (1 - t),
  "decreasing": lambda t, norm, path: (
    (norm * jnp.cos(math.pi * t) + 1) ** 2 / 4
  ),
  "increasing_decreasing": lambda t, norm, path: (
    norm * jnp.sin(math.pi * t) ** 2
  ),
}
LAST = ("mean", "tweedie", "euler", "none")

# A step from noise of size sigma to noise of size s adds noise of variance
# 2 D h, and what the velocity does to noise, from sigma down to s, is not done
# to that. On the linear path an excess of 2 (1 - s / sigma) D h remains, and
# (D h / sigma)^2 of the explicit score; at data, where s = 0, no noise belongs.
# D h <= s^2 / 2 holds both below s^2 a step, and all of it below s^2 / 3 where
# steps are short against 1 - t; every step contracts. The distribution is right
# for any D, so nothing is lost by taking less of it.
SHARE = 1 / 2


@dataclasses.dataclass(frozen=True)
class Stochastic(FixedSteps):
  """What both solvers share: the diffusion, and the last step.

  Attributes:
    form: of D(t), with c = norm: "constant" c, "sbdm" c times the variance of
      the diffusion that noises the data, "sigma" c sigma(t), "linear" c (1 -
      t), "decreasing" (c cos(pi t) + 1)^2 / 4, "increasing_decreasing"
      c sin(pi t)^2. Steps where D is infinite or too stiff take less of it.
    norm: c, at least 0; 0 is the plain flow, but for "decreasing".
    last: what is done in the interval that ends at t = 1: "mean", the drift
      without noise; "tweedie", the data that x and the score imply; "euler",
      the velocity alone; "none", a step like the others, which by the limit
      on D has no noise either. The drift of "mean" goes beyond the data and
      leaves noise of the size that x had, up to sigma, so it wants a short last
      step; the others do not.
    path: that the velocity was trained on.
  """

  form: str = "sigma"
  norm: float = 1.0
  last: str = "tweedie"
  path: Path = LINEAR

  order = 1

  def __post_init__(self):
    check_name("diffusion", self.form, FORMS)
    check_name("last step", self.last, LAST)
    if not self.norm >= 0:
      raise ValueError(f"norm = {self.norm}: must be 0 or more")

  def diffusion(self, t: jax.Array) -> jax.Array:
    """D(t), `f32[*T]`, as the form has it: no step has limited it yet."""
    return FORMS[self.form](t, self.norm, self.path)

  def _stir(self, rate, h, until):
    """D h of a step, `f32[*T]`: of D(t) = rate, as much as it may take."""
    return jnp.minimum(rate * h, SHARE * self.path.sigma(until) ** 2)

  def _ends(self, until):
    """`bool[*T]`: the interval is treated as `last` says."""
    return (until > 1 - ROUNDING) & (self.last != "none")

  def _last_stir(self, rate, h, t):
    """D h of the last drift; sigma^2 takes all of the noise of x once."""
    if self.last != "mean":
      return jnp.zeros_like(h)
    return jnp.minimum(rate * h, self.path.sigma(t) ** 2)

  def _noised(self, x, stir, t, samples):
    """x + sqrt(2 D h) normal numbers of the time t."""
    if samples.normal is None:
      raise ValueError(
        f"{type(self).__name__} draws noise, but these samples have no normal:"
        " give Samples one, as from noise.normal(keys, x)"
      )
    size = samples.spread(jnp.sqrt(2 * stir))
    return (x + size * samples.normal(t)).astype(x.dtype)

  def _move(self, velocity, x, t, h, stir, memory, samples):
    """h v + D h score at x, the data x1 that they imply, and the memory."""
    (slope, memory), at = velocity(x, t, memory), samples.spread(t)
    to = lambda wanted: convert(slope, x, at, "velocity", wanted, self.path)  # noqa: E731
    move = samples.spread(h) * slope + samples.spread(stir) * to("score")
    return move, to("data"), memory


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Stochastic):
  """x += h (v + D score) + sqrt(2 D h) w: one evaluation a step."""

  evaluations = 1

  def step(
    self,
    velocity: Velocity,
    state: State,
    t: jax.Array,
    until: jax.Array,
    samples: Samples,
  ) -> State:
    """One step from t to until."""
    x, h, ends = state.x, until - t, self._ends(until)
    rate = self.diffusion(t)
    stir = self._stir(rate, h, until)
    drawn = jnp.where(ends, self._last_stir(rate, h, t), stir)
    move, data, memory = self._move(
      velocity, x, t, h, drawn, state.velocity_memory, samples
    )
    there = self._noised(x + move, jnp.where(ends, 0, stir), t, samples)
    if self.last == "tweedie":
      there = jnp.where(samples.spread(ends), data, there)
    return state._replace(
      x=there.astype(x.dtype),
      evaluations=state.evaluations + self.evaluations,
      velocity_memory=memory,
    )


@dataclasses.dataclass(frozen=True)
class Heun(Stochastic):
  """Noise first, then Heun's mean of two drifts: two evaluations a step.

  x^ = x + sqrt(2 D h) w, then x^ += h (f(x^, t) + f(x^ + h f(x^, t), t + h)) /
  2, f = v + D score (SiT, section 4; the original's). Without D of second
  order. The last step is a single one, as `last` says.
  """

  evaluations = 2

  def step(
    self,
    velocity: Velocity,
    state: State,
    t: jax.Array,
    until: jax.Array,
    samples: Samples,
  ) -> State:
    """One step from t to until."""
    dtype, h, ends = state.x.dtype, until - t, self._ends(until)
    rate = self.diffusion(t)
    stir = self._stir(rate, h, until)
    x = self._noised(state.x, jnp.where(ends, 0, stir), t, samples)
    drawn = jnp.where(ends, self._last_stir(rate, h, t), stir)
    first, data, memory = self._move(
      velocity, x, t, h, drawn, state.velocity_memory, samples
    )
    once = (x + first).astype(dtype)
    stir = self._stir(self.diffusion(until), h, until)
    second, _, memory = self._move(
      velocity, once, until, h, stir, memory, samples
    )
    there = data if self.last == "tweedie" else once
    twice = x + (first + second) / 2
    there = jnp.where(samples.spread(ends), there, twice)
    return state._replace(
      x=there.astype(dtype),
      evaluations=state.evaluations + self.evaluations,
      velocity_memory=memory,
    )
