"""Two-step methods: second order with one evaluation of the velocity per step.

The first step has no previous slope and is an Euler step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import ROUNDING, FixedSteps, State, advance
from lumina_jax.flow.path import LINEAR, Path


class TwoStep(FixedSteps):
  """Carries a value of the previous step, like x, and the time of that step."""

  evaluations = 1
  order = 2

  def first_memory(self, x: Any, time: jax.Array) -> Any:
    """Zeros and the first time; equal times mark the first step."""
    return jax.tree.map(jnp.zeros_like, x), time


@dataclasses.dataclass(frozen=True)
class AdamsBashforth(TwoStep):
  """x += h ((1 + w) v_n - w v_{n-1}), w = h_n / (2 h_{n-1}).

  (Hairer, Norsett and Wanner 1993, section III.5: the line through two slopes.)
  """

  def step(self, velocity, state, t, until, samples) -> State:
    """See `FixedSteps.step`."""
    slope_before, before = state.solver_memory
    h, h_before = until - t, t - before
    first = h_before == 0
    w = jnp.where(first, 0, h / (2 * jnp.where(first, 1, h_before)))
    slope, memory = velocity(state.x, t, state.velocity_memory)
    x = advance(state.x, samples.spread(h * (1 + w)), (1.0,), (slope,))
    x = advance(x, samples.spread(h * w), (-1.0,), (slope_before,))
    slope = jax.tree.map(lambda k, x: k.astype(x.dtype), slope, state.x)
    return state._replace(
      x=x,
      evaluations=state.evaluations + 1,
      solver_memory=(slope, t),
      velocity_memory=memory,
    )


@dataclasses.dataclass(frozen=True)
class DpmSolver(TwoStep):
  """DPM-Solver++(2M), exact if the predicted data are linear in log SNR.

  x_{n+1} = (sigma_{n+1} / sigma_n) x_n
            + (alpha_{n+1} - alpha_n sigma_{n+1} / sigma_n) D,
  D = D_n + (D_n - D_{n-1}) (l_{n+1} - l_n) / (2 (l_n - l_{n-1})),

  with the data D_n that x_n and its velocity imply, and l = log(alpha / sigma)
  (Lu et al. 2022, "DPM-Solver++", algorithm 2). The step to pure data, where l
  is infinite, uses D_n alone. A solve cannot start at data. Towards the ends,
  where steps in l never get small, the error falls like h^2 log(1 / h); the
  order is 2 elsewhere.

  Attributes:
    path: path that the velocity was trained on.
  """

  path: Path = LINEAR

  def step(self, velocity, state, t, until, samples) -> State:
    """See `FixedSteps.step`."""
    path, (data_before, before) = self.path, state.solver_memory
    slope, memory = velocity(state.x, t, state.velocity_memory)
    sigma, d_sigma = path.sigma(t), path.d_sigma(t)
    wronskian = path.wronskian(t)
    data = jax.tree.map(
      lambda x, v, a, b: (a * x + b * v).astype(x.dtype),
      state.x,
      slope,
      samples.spread(-d_sigma / wronskian),
      samples.spread(sigma / wronskian),
    )
    # Infinite or NaN next to pure noise or pure data.
    ratio = (self._log_snr(until) - self._log_snr(t)) / (
      2 * (self._log_snr(t) - self._log_snr(before))
    )
    regular = jnp.isfinite(ratio) & (until < 1 - ROUNDING)
    ratio = samples.spread(jnp.where(regular, ratio, 0.0))
    # Empty slots are at pure data already and stay there.
    keep = path.sigma(until) / jnp.where(sigma > 0, sigma, 1.0)
    take = path.alpha(until) - path.alpha(t) * keep
    x = jax.tree.map(
      lambda x, new, old, r, a, b: (a * x + b * (new + r * (new - old))).astype(
        x.dtype
      ),
      state.x,
      data,
      data_before,
      ratio,
      samples.spread(keep),
      samples.spread(take),
    )
    return state._replace(
      x=x,
      evaluations=state.evaluations + 1,
      solver_memory=(data, t),
      velocity_memory=memory,
    )

  def _log_snr(self, t):
    return jnp.log(self.path.alpha(t)) - jnp.log(self.path.sigma(t))
