"""Solvers of dx = (v + D score) dt + sqrt(2 D) dW: the flow with added noise.

For any diffusion D(t) >= 0, x has the same distribution at every time as under
dx = v dt, since the score contracts what the noise spreads (SiT, arXiv
2401.08740, section 2, whose w is 2 D). With an inexact velocity, fresh noise
lets later steps correct errors of earlier ones.

The score is -x0 / sigma of the noise x0 that x and v imply. Times must rise,
since the equation is unstable backwards.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumina_jax.files.suggest import check_name
from lumina_jax.flow.ode import ROUNDING, FixedSteps, State
from lumina_jax.flow.path import LINEAR, Path, convert, drift_variance

# D(t) for a norm and a path (SiT; compute_diffusion of Lumina-T2X).
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

# A step from noise level sigma to level s adds noise of variance 2 D h, which
# the velocity of this step does not shrink from sigma to s. On the linear path
# an excess variance of 2 (1 - s / sigma) D h remains, plus (D h / sigma)^2 from
# the explicit score; at data, where s = 0, no noise may remain. D h <= s^2 / 2
# keeps both below s^2 per step, and their total below s^2 / 3 where steps are
# short compared to 1 - t, and every step contracts. The distribution is right
# for any D, so limiting D loses nothing.
MAX_SHARE = 1 / 2


@dataclasses.dataclass(frozen=True)
class Stochastic(FixedSteps):
  """Base of both solvers: the diffusion and the last step.

  Attributes:
    form: form of D(t), with c = norm: "constant" c, "sbdm" c times the
      `path.drift_variance`, "sigma" c sigma(t), "linear" c (1 - t),
      "decreasing" (c cos(pi t) + 1)^2 / 4, "increasing_decreasing"
      c sin(pi t)^2. Steps in which D is infinite or too stiff use less of it.
    norm: c, at least 0. 0 gives the plain flow, except for "decreasing".
    last: kind of the step that ends at t = 1: "mean", the drift without noise;
      "tweedie", the data that x and the score imply; "euler", the velocity
      alone; "none", a step like the others, which has no noise either, by the
      limit on D. The drift of "mean" overshoots the data and leaves noise up to
      the level sigma that x had, so it needs a short last step; the others do
      not.
    path: path that the velocity was trained on.

  Raises:
    ValueError: for an unknown form or last step, or a negative norm.
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
      raise ValueError(f"norm = {self.norm}: must not be negative")

  def diffusion(self, t: jax.Array) -> jax.Array:
    """D(t), `f32[*T]`, before steps limit it."""
    return FORMS[self.form](t, self.norm, self.path)

  def _is_last(self, until):
    """`bool[*T]`: whether the step is of the kind `last`."""
    return (until > 1 - ROUNDING) & (self.last != "none")

  def _diffused(self, t, h, until):
    """D(t) h of a step, `f32[*T]`, limited so that the step contracts."""
    limit = MAX_SHARE * self.path.sigma(until) ** 2
    return jnp.minimum(self.diffusion(t) * h, limit)

  def _last_diffused(self, t, h):
    """D(t) h of the last drift; at sigma^2 it removes the noise of x once."""
    if self.last != "mean":
      return jnp.zeros_like(h)
    return jnp.minimum(self.diffusion(t) * h, self.path.sigma(t) ** 2)

  def _add_noise(self, x, diffused, t, samples):
    """x + sqrt(2 D h) w, with the normal numbers w of the time t."""
    if samples.normal is None:
      raise ValueError(
        f"{type(self).__name__} adds noise, but samples.normal is None: set it,"
        " e.g. to noise.normal(keys, x)"
      )
    scale = samples.spread(jnp.sqrt(2 * diffused))
    return (x + scale * samples.normal(t)).astype(x.dtype)

  def _drift(self, velocity, x, t, h, diffused, memory, samples):
    """Returns h v + D h score, the data that x and v imply, and the memory."""
    (slope, memory), at = velocity(x, t, memory), samples.spread(t)
    score, data = (
      convert(slope, x, at, "velocity", target, self.path)
      for target in ("score", "data")
    )
    drift = samples.spread(h) * slope + samples.spread(diffused) * score
    return drift, data, memory


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Stochastic):
  """x += h (v + D score) + sqrt(2 D h) w: one evaluation per step."""

  evaluations = 1

  def step(self, velocity, state, t, until, samples) -> State:
    """See `FixedSteps.step`."""
    x, h, last = state.x, until - t, self._is_last(until)
    diffused = self._diffused(t, h, until)
    contracted = jnp.where(last, self._last_diffused(t, h), diffused)
    drift, data, memory = self._drift(
      velocity, x, t, h, contracted, state.velocity_memory, samples
    )
    end = self._add_noise(x + drift, jnp.where(last, 0, diffused), t, samples)
    if self.last == "tweedie":
      end = jnp.where(samples.spread(last), data, end)
    return state._replace(
      x=end.astype(x.dtype),
      evaluations=state.evaluations + self.evaluations,
      velocity_memory=memory,
    )


@dataclasses.dataclass(frozen=True)
class Heun(Stochastic):
  """Noise first, then Heun's mean of two drifts: two evaluations a step.

  x^ = x + sqrt(2 D h) w, then x^ += h (f(x^, t) + f(x^ + h f(x^, t), t + h)) /
  2, f = v + D score (SiT, section 4; also Lumina-T2X). Of second order for
  D = 0. The step of kind `last` uses the first of its two drifts only.
  """

  evaluations = 2

  def step(self, velocity, state, t, until, samples) -> State:
    """See `FixedSteps.step`."""
    dtype, h, last = state.x.dtype, until - t, self._is_last(until)
    diffused = self._diffused(t, h, until)
    x = self._add_noise(state.x, jnp.where(last, 0, diffused), t, samples)
    contracted = jnp.where(last, self._last_diffused(t, h), diffused)
    first, data, memory = self._drift(
      velocity, x, t, h, contracted, state.velocity_memory, samples
    )
    euler = (x + first).astype(dtype)
    diffused = self._diffused(until, h, until)
    second, _, memory = self._drift(
      velocity, euler, until, h, diffused, memory, samples
    )
    single = data if self.last == "tweedie" else euler
    end = jnp.where(samples.spread(last), single, x + (first + second) / 2)
    return state._replace(
      x=end.astype(dtype),
      evaluations=state.evaluations + self.evaluations,
      velocity_memory=memory,
    )
