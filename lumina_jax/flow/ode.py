"""Solvers of dx/dt = v(x, t): what they share, and explicit Runge-Kutta."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lumina_jax.flow.samples import TOGETHER, Samples

# State and times `f32[*T]` of its samples -> slope, like the state.
Velocity = Callable[[Any, jax.Array], Any]


class State(NamedTuple):
  """A solve under way.

  Attributes:
    x: where it is.
    time: when, `f32[*T]`.
    evaluations: `i32[]`, how often the velocity was asked so far.
    behind: `bool[*T]`, samples that gave up before their last time.
    memory: what the solver carries from step to step.
  """

  x: Any
  time: jax.Array
  evaluations: jax.Array
  behind: jax.Array
  memory: Any = ()


def begin(x: Any, time: jax.Array, memory: Any = ()) -> State:
  """A solve that has not stepped yet, at time `f32[*T]`."""
  return State(x, time, jnp.int32(0), jnp.zeros(jnp.shape(time), bool), memory)


class Solver(Protocol):
  """A way from times[0] to times[-1]; hashable, so that programs key on it."""

  def start(self, x: Any, time: jax.Array) -> State:
    """The state at times[0] `f32[*T]`."""

  def integrate(
    self, velocity: Velocity, state: State, times: jax.Array, samples: Samples
  ) -> State:
    """Goes on along times `f32[steps + 1, *T]`."""


class Segment(NamedTuple):
  """A part of a solve with a velocity of its own.

  Attributes:
    velocity: v(x, t).
    times: `f32[steps + 1, *T]`; the first is the last of the segment before.
  """

  velocity: Velocity
  times: jax.Array


def run(
  segments: Sequence[Segment],
  x: Any,
  solver: Solver,
  samples: Samples = TOGETHER,
) -> State:
  """Solves segment by segment, each one scan; memory passes between them."""
  state = solver.start(x, segments[0].times[0])
  for velocity, times in segments:
    state = solver.integrate(velocity, state, times, samples)
  return state


def solve(
  velocity: Velocity,
  x: Any,
  times: jax.Array,
  solver: Solver,
  samples: Samples = TOGETHER,
) -> Any:
  """Integrates from times[0] to times[-1], forwards or backwards.

  Args:
    velocity: v(x, t), of x's shape.
    x: the state at times[0].
    times: `f32[steps + 1, *T]`, traced: other times do not recompile.
    solver: one of `solvers.SOLVERS`.
    samples: whose times these are.

  Returns:
    The state at times[-1], in x's dtype.
  """
  return run([Segment(velocity, times)], x, solver, samples).x


# Grids end this close to t = 1: what float32 makes of a time misses it by less.
ROUNDING = 1e-5


class FixedSteps:
  """A solver that steps from each time to the next, in one scan."""

  def start(self, x: Any, time: jax.Array) -> State:
    """The state at times[0], with the memory of no step yet."""
    return begin(x, time, self.memory(x, time))

  def memory(self, x: Any, time: jax.Array) -> Any:
    """What is carried from step to step; () of one-step methods."""
    return ()

  def step(
    self,
    velocity: Velocity,
    state: State,
    t: jax.Array,
    until: jax.Array,
    samples: Samples,
  ) -> State:
    """One step from t to until, `f32[*T]` each."""
    raise NotImplementedError

  def integrate(
    self, velocity: Velocity, state: State, times: jax.Array, samples: Samples
  ) -> State:
    """One step for each interval of times."""

    def step(state, interval):
      t, until = interval
      state = self.step(velocity, state, t, until, samples)
      return state._replace(time=until), None

    return jax.lax.scan(step, state, (times[:-1], times[1:]))[0]


def advance(
  x: Any, h: Any, weights: Sequence[Any], slopes: Sequence[Any]
) -> Any:
  """x + h sum_j weights_j slopes_j, in x's dtype.

  Args:
    x: a state.
    h: what broadcasts against it, from `Samples.spread`.
    weights: numbers, or what broadcasts like h. Zeros cost nothing.
    slopes: like x.
  """
  leaves, tree = jax.tree.flatten(x)
  for weight, slope in zip(weights, slopes, strict=True):
    if isinstance(weight, float) and not weight:
      continue
    by = jax.tree.map(lambda h, w=weight: h * w, h)
    by, slope = jax.tree.leaves(by), tree.flatten_up_to(slope)
    leaves = [
      x + (h * s).astype(x.dtype)
      for x, h, s in zip(leaves, by, slope, strict=True)
    ]
  return jax.tree.unflatten(tree, leaves)


@dataclasses.dataclass(frozen=True)
class Tableau(FixedSteps):
  """Butcher tableau of an explicit Runge-Kutta method.

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

  def step(
    self,
    velocity: Velocity,
    state: State,
    t: jax.Array,
    until: jax.Array,
    samples: Samples,
  ) -> State:
    """One step from t to until."""
    x, slopes = state.x, stages(self, velocity, state.x, t, until - t, samples)
    x = advance(x, samples.spread(until - t), self.b, slopes)
    return state._replace(x=x, evaluations=state.evaluations + self.evaluations)


def stages(
  tableau: Tableau,
  velocity: Velocity,
  x: Any,
  t: jax.Array,
  h: jax.Array,
  samples: Samples,
  first: Any = None,
) -> list[Any]:
  """The slopes k_i of one step.

  Args:
    tableau: of the method.
    velocity: v(x, t).
    x: state at t.
    t: `f32[*T]`.
    h: length of the step, `f32[*T]`.
    samples: whose times these are.
    first: k_1, if it is known.
  """
  slopes = [] if first is None else [first]
  spread = samples.spread(h)
  for row, c in list(zip(tableau.a, tableau.c, strict=True))[len(slopes) :]:
    slopes.append(velocity(advance(x, spread, row, slopes), t + c * h))
  return slopes


EULER = Tableau(a=((),), b=(1.0,), order=1)
MIDPOINT = Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), order=2)
HEUN = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2)
# Heun's method of third order.
HEUN3 = Tableau(a=((), (1 / 3,), (0.0, 2 / 3)), b=(1 / 4, 0.0, 3 / 4), order=3)
RK4 = Tableau(
  a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
  b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
  order=4,
)
# The 3/8 rule, what torchdiffeq and so the original call rk4.
RK4_38 = Tableau(
  a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
  b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
  order=4,
)
