"""Solvers of dx/dt = v(x, t): their protocol, and explicit Runge-Kutta.

A velocity may carry memory from one evaluation to the next, e.g. the caches of
layers: `velocity(x, t, memory) -> (v, memory)`. Solvers thread it through their
evaluations in order and never look into it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lumina_jax.flow.samples import SINGLE, Samples

# (state, times f32[*T], memory) -> (slope like the state, memory)
Velocity = Callable[[Any, jax.Array, Any], tuple[Any, Any]]


def stateless(function: Callable[[Any, jax.Array], Any]) -> Velocity:
  """Turns v(x, t) into a velocity that passes any memory through."""
  return lambda x, t, memory: (function(x, t), memory)


class State(NamedTuple):
  """The state of a solve.

  Attributes:
    x: solution so far.
    time: time of the solution, `f32[*T]`.
    evaluations: evaluations of the velocity so far, `i32[]`.
    behind: `bool[*T]`, True for samples that gave up before their last time.
    solver_memory: values that the solver carries between steps.
    velocity_memory: values that the velocity carries between evaluations.
  """

  x: Any
  time: jax.Array
  evaluations: jax.Array
  behind: jax.Array
  solver_memory: Any = ()
  velocity_memory: Any = ()


def initial_state(
  x: Any, time: jax.Array, solver_memory: Any = (), velocity_memory: Any = ()
) -> State:
  """The state before the first step, at time `f32[*T]`."""
  behind = jnp.zeros(jnp.shape(time), bool)
  return State(x, time, jnp.int32(0), behind, solver_memory, velocity_memory)


class Solver(Protocol):
  """Integrates over times; hashable, since compiled programs key on it."""

  def start(self, x: Any, time: jax.Array, memory: Any = ()) -> State:
    """The state at times[0] `f32[*T]`, with the velocity's first memory."""

  def integrate(
    self, velocity: Velocity, state: State, times: jax.Array, samples: Samples
  ) -> State:
    """Continues along times `f32[steps + 1, *T]`."""


class Segment(NamedTuple):
  """A section of a solve with its own velocity.

  Attributes:
    velocity: v(x, t, memory).
    times: `f32[steps + 1, *T]`; the first time is the last of the segment
      before.
  """

  velocity: Velocity
  times: jax.Array


def run(
  segments: Sequence[Segment],
  x: Any,
  solver: Solver,
  samples: Samples = SINGLE,
  memory: Any = (),
) -> State:
  """Solves segment by segment, one scan each; both memories pass on.

  Args:
    segments: in the order of their times.
    x: state at the first time.
    solver: one of `solvers.SOLVERS`.
    samples: layout of x.
    memory: first memory of the velocities.
  """
  state = solver.start(x, segments[0].times[0], memory)
  for velocity, times in segments:
    state = solver.integrate(velocity, state, times, samples)
  return state


def solve(
  velocity: Velocity,
  x: Any,
  times: jax.Array,
  solver: Solver,
  samples: Samples = SINGLE,
  memory: Any = (),
) -> Any:
  """Integrates from times[0] to times[-1], forwards or backwards.

  Args:
    velocity: v(x, t, memory), of x's shape; `stateless` wraps a plain v(x, t).
    x: state at times[0].
    times: `f32[steps + 1, *T]`, traced, so other times never recompile.
    solver: one of `solvers.SOLVERS`.
    samples: layout of x.
    memory: first memory of the velocity.

  Returns:
    The state at times[-1], in x's dtype.
  """
  return run([Segment(velocity, times)], x, solver, samples, memory).x


# Times this close to t = 1 count as the end; float32 rounds by less.
ROUNDING = 1e-5


class FixedSteps:
  """A solver that steps from each time to the next, in one scan."""

  def start(self, x: Any, time: jax.Array, memory: Any = ()) -> State:
    """The state at times[0]."""
    return initial_state(x, time, self.first_memory(x, time), memory)

  def first_memory(self, x: Any, time: jax.Array) -> Any:
    """The solver's memory before the first step; () for one-step methods."""
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

  def integrate(self, velocity, state, times, samples) -> State:
    """Takes one step per interval of times."""

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
    h: step, an array that broadcasts against x, from `Samples.spread`.
    weights: one number per slope. Zeros cost nothing.
    slopes: each like x.
  """
  leaves, tree = jax.tree.flatten(x)
  for weight, slope in zip(weights, slopes, strict=True):
    if not weight:
      continue
    steps = jax.tree.leaves(jax.tree.map(lambda h, w=weight: h * w, h))
    leaves = [
      x + (h * s).astype(x.dtype)
      for x, h, s in zip(leaves, steps, tree.flatten_up_to(slope), strict=True)
    ]
  return jax.tree.unflatten(tree, leaves)


def stages(
  rows: Sequence[Sequence[float]],
  velocity: Velocity,
  x: Any,
  t: jax.Array,
  h: jax.Array,
  memory: Any,
  samples: Samples,
  first: Any = None,
) -> tuple[list[Any], Any]:
  """The slopes of one step, k_i = v(x + h sum_j a_ij k_j, t + c_i h).

  Args:
    rows: a_i of each stage; c_i is the sum of its row.
    velocity: v(x, t, memory).
    x: state at t.
    t: `f32[*T]`.
    h: length of the step, `f32[*T]`.
    memory: memory of the velocity; stages pass it on in order.
    samples: layout of x.
    first: k_1 where it is known.

  Returns:
    The slopes k_i, each like x, and the memory after the last stage.
  """
  slopes = [] if first is None else [first]
  spread = samples.spread(h)
  for row in rows[len(slopes) :]:
    at = advance(x, spread, row, slopes)
    slope, memory = velocity(at, t + sum(row) * h, memory)
    slopes.append(slope)
  return slopes, memory


@dataclasses.dataclass(frozen=True)
class Tableau(FixedSteps):
  """Butcher tableau of an explicit Runge-Kutta method.

  k_i = v(x + h sum_j a_ij k_j, t + c_i h), then x += h sum_i b_i k_i.

  Attributes:
    a: strictly lower triangular rows, one per stage.
    b: weights of the stages.
    order: order of the global error in h.
  """

  a: tuple[tuple[float, ...], ...]
  b: tuple[float, ...]
  order: int

  @property
  def c(self) -> tuple[float, ...]:
    """Times of the stages, as shares of the step."""
    return tuple(sum(row) for row in self.a)

  @property
  def evaluations(self) -> int:
    """Evaluations of the velocity per step."""
    return len(self.b)

  def step(self, velocity, state, t, until, samples) -> State:
    """See `FixedSteps.step`."""
    h, memory = until - t, state.velocity_memory
    slopes, memory = stages(self.a, velocity, state.x, t, h, memory, samples)
    return state._replace(
      x=advance(state.x, samples.spread(h), self.b, slopes),
      evaluations=state.evaluations + self.evaluations,
      velocity_memory=memory,
    )


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
# The 3/8 rule. torchdiffeq, and hence Lumina-T2X, calls it rk4.
RK4_38 = Tableau(
  a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
  b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
  order=4,
)
