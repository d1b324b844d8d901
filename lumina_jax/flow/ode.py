"""Explicit Runge-Kutta solvers of dx/dt = v(x, t): a solver is its tableau."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp

Velocity = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Tableau:
  """Butcher tableau of an explicit method.

  k_i = v(x + h sum_j a_ij k_j, t + c_i h), then x += h sum_i b_i k_i.

  Attributes:
    a: strictly lower triangular rows, one for each stage.
    b: weights of the stages.
    order: of the global error in h.
  """

  a: tuple[tuple[float, ...], ...]
  b: tuple[float, ...]
  order: int

  @property
  def c(self) -> tuple[float, ...]:
    return tuple(sum(row) for row in self.a)

  @property
  def evaluations(self) -> int:
    """Evaluations of the velocity per step."""
    return len(self.b)


SOLVERS = {
  "euler": Tableau(a=((),), b=(1.0,), order=1),
  "midpoint": Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), order=2),
  "heun": Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2),
  "rk4": Tableau(
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    order=4,
  ),
}


def solver(name: str) -> Tableau:
  """The solver of that name.

  Raises:
    ValueError: if there is none; near names are suggested.
  """
  if name not in SOLVERS:
    near = difflib.get_close_matches(str(name), SOLVERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
      f"unknown solver {name!r}; {hint}there are: {', '.join(SOLVERS)}"
    )
  return SOLVERS[name]


def solve(
  velocity: Velocity, x: jax.Array, times: jax.Array, tableau: Tableau
) -> jax.Array:
  """Integrates from times[0] to times[-1], one scan over the intervals.

  Args:
    velocity: v(x, t) with a scalar t, of x's shape.
    x: the state at times[0].
    times: `f32[steps + 1]`, traced: other times do not recompile.
    tableau: one of `SOLVERS`.

  Returns:
    The state at times[-1], in x's dtype.
  """

  def step(x, interval):
    t, until = interval
    h = until - t
    slopes = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
      slopes.append(velocity(_advance(x, h, row, slopes), t + c * h))
    return _advance(x, h, tableau.b, slopes), None

  intervals = jnp.stack([times[:-1], times[1:]], axis=-1)
  return jax.lax.scan(step, x, intervals)[0]


def _advance(x, h, weights, slopes):
  for weight, slope in zip(weights, slopes, strict=True):
    if weight:
      x = x + (h * weight * slope).astype(x.dtype)
  return x
