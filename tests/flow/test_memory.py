"""Memory of velocities: order, segments, rejected steps, likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import noise, ode, sde
from lumina_jax.flow.adaptive import DORMAND_PRINCE, DormandPrince
from lumina_jax.flow.likelihood import basis, log_density
from lumina_jax.flow.ode import Segment, run
from lumina_jax.flow.samples import SINGLE, batch
from lumina_jax.flow.solvers import SOLVERS

every_solver = pytest.mark.parametrize("name", SOLVERS)
TIMES = np.array([0.0, 0.1, 0.4, 0.6, 1.0])
X = np.array([0.5, 1.0, 1.5])


@pytest.fixture(autouse=True)
def x64():
  with jax.enable_x64(True):
    yield


def swing(x, t):
  return jnp.cos(3 * t) * x


def recording(x, t, memory):
  """Counts its evaluations and notes their times."""
  count, times = memory
  return swing(x, t), (count + 1, times.at[count].set(t))


def momentum(x, t, memory):
  """Depends on all its evaluations in their order."""
  slope = swing(x, t) + 0.3 * memory["slope"]
  return slope, {"slope": 0.9 * memory["slope"] - slope}


def single(x):
  return SINGLE._replace(normal=noise.normal(jax.random.key(0), x))


def expected_times(solver, seen):
  """Times of evaluations along TIMES; adaptive steps are read off `seen`."""
  grid, shares = TIMES, (0.0,)
  if isinstance(solver, ode.Tableau):
    shares = solver.c
  if isinstance(solver, sde.Heun):
    shares = (0.0, 1.0)
  if isinstance(solver, DormandPrince):
    grid, shares = np.append(seen[::6], 1.0), DORMAND_PRINCE.c[:6]
  return [
    t + share * (until - t)
    for t, until in itertools.pairwise(grid)
    for share in shares
  ]


@every_solver
def test_a_velocity_sees_its_evaluations_in_order(name):
  solver = SOLVERS[name]
  memory = 0, jnp.full(60, jnp.nan)
  segment = Segment(recording, TIMES)
  state = jax.jit(lambda x: run([segment], x, solver, single(x), memory))(X)
  count, seen = state.velocity_memory
  np.testing.assert_allclose(
    seen[:count], expected_times(solver, seen[:count]), atol=1e-12
  )
  # The last evaluation of an adaptive step belongs to the next one.
  assert state.evaluations == count + (name == "dopri5")


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dopri5"])
def test_both_memories_pass_between_segments(name):
  solver, memory = SOLVERS[name], {"slope": jnp.ones(3)}

  @jax.jit
  def ends(x):
    whole = Segment(momentum, TIMES)
    parts = [Segment(momentum, TIMES[:3]), Segment(momentum, TIMES[2:])]
    return [
      run(segments, x, solver, single(x), memory)
      for segments in ([whole], parts)
    ]

  whole, found = ends(X)
  assert found.evaluations == whole.evaluations == 4 * solver.evaluations
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_steps_one_by_one_equal_the_whole_solve():
  """Each a call of its own, as under callbacks."""
  solver, memory = SOLVERS["ab2"], {"slope": jnp.ones(3)}
  integrate = jax.jit(
    lambda state, times: solver.integrate(momentum, state, times, SINGLE)
  )
  start = solver.start(X, TIMES[0], memory)
  whole, state = integrate(start, TIMES), start
  for interval in itertools.pairwise(TIMES):
    state = integrate(state, np.stack(interval))
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_stateless_velocity_passes_memory_through():
  memory = {"slope": jnp.ones(3)}
  segment = Segment(ode.stateless(swing), TIMES)
  state = run([segment], X, SOLVERS["heun"], memory=memory)
  np.testing.assert_array_equal(state.velocity_memory["slope"], 1)


def test_adaptive_segments_pass_memory_on():
  segments = [
    Segment(recording, np.stack(t)) for t in itertools.pairwise(TIMES)
  ]
  memory = 0, jnp.full(60, jnp.nan)
  state = jax.jit(lambda x: run(segments, x, DormandPrince(), memory=memory))(X)
  count, seen = state.velocity_memory
  expected = expected_times(DormandPrince(), seen[:count])
  np.testing.assert_allclose(seen[:count], expected, atol=1e-12)
  assert state.evaluations == count + len(segments)


def test_adaptive_steps_one_by_one_equal_the_whole_solve():
  x, times = jnp.ones((2, 3)), np.stack([TIMES, TIMES], axis=1)

  def stiff(x, t, memory):
    slope, memory = momentum(x, t[:, None], memory)
    return slope * jnp.array([[1.0], [60.0]]), memory

  def integrate(tries):
    solver = DormandPrince(tries=tries)
    return solver, jax.jit(
      lambda state: solver.integrate(stiff, state, times, batch(x))
    )

  solver, solve = integrate(None)
  start = solver.start(x, times[0], {"slope": jnp.zeros_like(x)})
  whole = solve(start)
  _, step = integrate(1)
  state, steps = start, 0
  while np.any(state.time != 1) and steps < 200:
    state, steps = step(state), steps + 1
  assert whole.evaluations == 1 + 6 * steps
  assert state.evaluations == whole.evaluations + steps - 1
  np.testing.assert_allclose(state.x, whole.x, rtol=1e-10)
  np.testing.assert_allclose(
    state.velocity_memory["slope"], whole.velocity_memory["slope"], rtol=1e-10
  )


RATES = np.array([0.1, 40.0, 3.0])


def test_rejected_and_idle_steps_leave_no_trace_in_a_samples_memory():
  def decay(x, t, memory):
    rates, total, count = memory
    slope = -(rates * jnp.cos(t))[:, None] * x + 1e-3 * total
    return slope, (rates, total + slope, count + 1)

  @jax.jit
  def end(x, rates):
    memory = rates, jnp.zeros_like(x), jnp.zeros(len(x), int)
    times = jnp.stack([jnp.zeros(len(x)), jnp.ones(len(x))])
    segment = Segment(decay, times)
    return run([segment], x, DormandPrince(), batch(x), memory)

  x = jnp.ones((3, 2))
  together, tried, accepted = end(x, RATES), [], []
  for i in range(3):
    alone = end(x[i : i + 1], RATES[i : i + 1])
    np.testing.assert_allclose(together.x[i], alone.x[0], rtol=1e-10)
    for a, b in zip(
      together.velocity_memory, alone.velocity_memory, strict=True
    ):
      np.testing.assert_allclose(a[i], b[0], rtol=1e-10)
    tried.append(int(alone.evaluations) - 1)
    accepted.append(int(alone.velocity_memory[2][0]))
  assert tried[0] == accepted[0] < tried[2]  # The first waits for the others.
  assert tried[1] > accepted[1]  # Steps of the second are rejected.


def test_likelihood_passes_constants_and_refuses_other_memory():
  x, rates = jnp.linspace(-1, 1, 6).reshape(3, 2), jnp.array([0.3, 2.0])

  def density(velocity, memory=()):
    found = log_density(
      velocity, x, TIMES, SOLVERS["rk4"], basis(x), memory=memory
    )
    return found.log_density

  expected = density(ode.stateless(lambda x, t: -rates * x))
  constant = lambda x, t, memory: (-memory["rates"] * x, memory)  # noqa: E731
  memory = {"rates": rates}
  for call in (density, jax.jit(density, static_argnums=0)):
    np.testing.assert_allclose(call(constant, memory), expected, rtol=1e-6)
  changing = lambda x, t, memory: (  # noqa: E731
    constant(x, t, memory)[0],
    {"rates": memory["rates"] * 1.0},
  )
  growing = lambda x, t, memory: (-x, {**memory, "more": t})  # noqa: E731
  for velocity in (changing, growing):
    for call in (density, jax.jit(density, static_argnums=0)):
      with pytest.raises(ValueError, match="changes its memory between"):
        call(velocity, memory)
