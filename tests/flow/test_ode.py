"""Solvers: consistent tableaux, their orders, the original's end states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import ode, samples, schedule
from lumina_jax.flow.ode import Segment, Tableau, run, solve
from lumina_jax.flow.solvers import SOLVERS, solver

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
TABLEAUX = [name for name in SOLVERS if isinstance(SOLVERS[name], Tableau)]
FIXED = [*TABLEAUX, "ab2", "dpm2m"]
every_tableau = pytest.mark.parametrize("name", TABLEAUX)
every_solver = pytest.mark.parametrize("name", FIXED)
# As torchdiffeq, and so the original, calls them.
THEIRS = {"rk4": "rk4_38"}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def swing(x, t):
  return jnp.cos(3 * t) * x


@every_tableau
def test_tableaux_are_explicit_and_consistent(name):
  tableau = SOLVERS[name]
  assert [len(row) for row in tableau.a] == list(range(tableau.evaluations))
  assert sum(tableau.b) == pytest.approx(1)
  assert all(0 <= c <= 1 for c in tableau.c)
  if tableau.order >= 2:
    by_c = sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True))
    assert by_c == pytest.approx(1 / 2)


def order_of(name, velocity, x, exact, grid, steps):
  def error(steps):
    end = solve(velocity, x, grid(steps).astype(float), SOLVERS[name])
    return np.abs(end - exact).max()

  return np.log2(error(steps) / error(2 * steps))


@pytest.mark.parametrize("name", [*TABLEAUX, "ab2"])
def test_error_falls_with_the_order(name, x64):
  x = jnp.array([0.5, 1.0, 1.2])
  exact = 1 / (1 / x - 1 / 2)
  field = lambda x, t: t * x**2  # noqa: E731
  found = order_of(name, field, x, exact, schedule.uniform, 160)
  assert found == pytest.approx(SOLVERS[name].order, abs=0.25)


def gaussian(x, t, mean=0.7, deviation=0.5):
  """The velocity of data N(mean, deviation^2); data are mean + deviation x0."""
  variance = (t * deviation) ** 2 + (1 - t) ** 2
  return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)


@pytest.mark.parametrize(
  ("name", "least"),
  [("euler", 0.9), ("heun", 1.9), ("ab2", 1.85), ("dpm2m", 1.7)],
)
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_orders_on_the_way_to_gaussian_data(name, least, factor, x64):
  x = jnp.array([-1.3, 0.2, 1.7])
  grid = lambda steps: schedule.shift(schedule.uniform(steps), factor)  # noqa: E731
  found = order_of(name, gaussian, x, 0.7 + 0.5 * x, grid, 640)
  assert least < found < SOLVERS[name].order + 0.15


@pytest.mark.parametrize("name", ["midpoint", "ab2"])
def test_grids_of_uneven_steps_keep_the_order(name, x64):
  x = jnp.array([-1.3, 0.2, 1.7])
  found = order_of(name, gaussian, x, 0.7 + 0.5 * x, schedule.sigmoid, 640)
  assert found > 1.85


def test_data_at_one_point_are_reached_in_one_step_of_dpm(x64):
  """There the predicted data are constant, which it is exact for."""
  data = jnp.array([0.3, -2.0])
  toward = lambda x, t: (data - x) / (1 - t)  # noqa: E731
  for steps in (1, 2, 5):
    end = solve(toward, jnp.ones(2), schedule.uniform(steps), SOLVERS["dpm2m"])
    np.testing.assert_allclose(end, data, rtol=1e-12)


@pytest.mark.parametrize("end", [1.0, 1 - 2.5e-7, 1 + 1e-7])
def test_an_end_that_misses_data_by_a_rounding_is_no_other_end(end, x64):
  times = schedule.shift(schedule.uniform(20), 3.3)
  x = jnp.array([-1.3, 0.2, 1.7])
  expected = solve(gaussian, x, times, SOLVERS["dpm2m"])
  found = solve(gaussian, x, times.at[-1].set(end), SOLVERS["dpm2m"])
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", [*FIXED, "dopri5"])
def test_samples_may_have_times_of_their_own(name, x64):
  x = jnp.linspace(0.5, 1.5, 6).reshape(3, 2)
  times = jnp.stack(
    [schedule.shift(schedule.uniform(6), f) for f in (0.5, 1.0, 4.0)], axis=1
  )
  times = times.at[:, 2].set(0.3 + 0.7 * times[:, 2])
  of = lambda x, t: jnp.cos(3 * t)[:, None] * x  # noqa: E731
  together = solve(of, x, times, SOLVERS[name], samples.batch(x))
  for row in range(3):
    alone = solve(swing, x[row], times[:, row], SOLVERS[name])
    np.testing.assert_allclose(together[row], alone, rtol=1e-12)


@every_solver
def test_states_may_be_trees(name, x64):
  """Of several arrays, each with what is spread over it."""
  x = {"a": jnp.ones(3), "b": jnp.full((2, 2), 2.0)}
  both = samples.Samples(lambda h: {"a": h, "b": h}, mean=None)
  of = lambda x, t: {"a": swing(x["a"], t), "b": swing(x["b"], t)}  # noqa: E731
  end = solve(of, x, schedule.uniform(7), SOLVERS[name], both)
  for leaf in x:
    alone = solve(swing, x[leaf], schedule.uniform(7), SOLVERS[name])
    np.testing.assert_allclose(end[leaf], alone, rtol=1e-12)


@pytest.mark.parametrize("name", [*FIXED, "dopri5"])
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_constant_velocity_is_solved_exactly(name, factor):
  x, slope = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])
  times = schedule.shift(schedule.uniform(7), factor)
  end = solve(lambda x, t: slope, x, times, SOLVERS[name])
  np.testing.assert_allclose(end, x + slope, rtol=1e-6)


@every_solver
def test_a_solution_may_be_cut_anywhere(name, x64):
  """In segments, whose memory passes on; with none, in solves of their own."""
  x, times = jnp.ones(3), schedule.uniform(9)
  parts = [Segment(swing, times[:5]), Segment(swing, times[4:])]
  whole = run([Segment(swing, times)], x, SOLVERS[name])
  found = run(parts, x, SOLVERS[name])
  np.testing.assert_allclose(found.x, whole.x, rtol=1e-12)
  assert found.evaluations == whole.evaluations
  assert found.evaluations == 9 * SOLVERS[name].evaluations
  if name in TABLEAUX:
    middle = solve(swing, x, times[:5], SOLVERS[name])
    end = solve(swing, middle, times[4:], SOLVERS[name])
    np.testing.assert_allclose(end, whole.x, rtol=1e-12)


@every_solver
def test_the_velocity_may_change_between_segments(name, x64):
  x, times = jnp.ones(3), schedule.uniform(400)
  slower = lambda x, t: 0.5 * x  # noqa: E731
  parts = [Segment(swing, times[:201]), Segment(slower, times[200:])]
  exact = np.exp(np.sin(1.5) / 3 + 0.25)
  end = run(parts, x, SOLVERS[name]).x
  np.testing.assert_allclose(end, exact, rtol=3e-3)


def test_time_may_run_backwards(x64):
  x, times = jnp.ones(3), schedule.uniform(50)
  for name in ("rk4", "rk4_38"):
    there = solve(swing, x, times, SOLVERS[name])
    back = solve(swing, there, times[::-1], SOLVERS[name])
    np.testing.assert_allclose(back, x, rtol=1e-7)


@every_solver
def test_the_state_keeps_its_dtype(name):
  field = lambda x, t: swing(x.astype(jnp.float32), t)  # noqa: E731
  x = jnp.ones(3, jnp.bfloat16)
  end = solve(field, x, schedule.uniform(4), SOLVERS[name])
  assert end.dtype == jnp.bfloat16


@every_solver
def test_other_times_do_not_recompile(name):
  traces = []

  @jax.jit
  def run(x, times):
    traces.append(None)
    return solve(swing, x, times, SOLVERS[name])

  ends = [
    run(jnp.ones(3), schedule.shift(schedule.uniform(6), factor))
    for factor in (1.0, 2.0, 4.0)
  ]
  assert len(traces) == 1
  assert len(np.unique([end[0] for end in ends])) == 3


@every_solver
@pytest.mark.parametrize("steps", [2, 20])
def test_the_program_holds_one_step(name, steps):
  program = jax.make_jaxpr(solve, static_argnums=(0, 3))(
    swing, jnp.ones(3), schedule.uniform(steps), SOLVERS[name]
  )
  assert str(program).count("= cos ") == SOLVERS[name].evaluations


def golden_field(x, t):
  return jnp.cos(3 * t) * x - 0.5 * x**2 / (1 + x**2)


def golden_times(points, factor):
  return schedule.shift(schedule.uniform(points - 1), factor)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("points", [6, 11])
@pytest.mark.parametrize("name", ["euler", "midpoint", "heun3", "rk4"])
def test_end_states_equal_the_original(name, points, factor, x64):
  golden = load_file(GOLDEN)
  end = solve(
    golden_field,
    jnp.asarray(golden["ode_x0"]),
    golden_times(points, factor),
    SOLVERS[THEIRS.get(name, name)],
  )
  assert end.dtype == jnp.float64
  expected = golden[f"ode_{name}_points{points}_shift{factor}"]
  np.testing.assert_allclose(end, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
  ("name", "points"), [("heun", 2001), ("midpoint", 2001), ("rk4", 101)]
)
def test_fine_grids_reach_the_originals_adaptive_solution(name, points, x64):
  golden = load_file(GOLDEN)
  end = solve(
    golden_field,
    jnp.asarray(golden["ode_x0"]),
    golden_times(points, 1),
    SOLVERS[name],
  )
  expected = golden["ode_dopri5_points11_shift1"]
  np.testing.assert_allclose(end, expected, atol=1e-6, rtol=0)


def test_unknown_solvers_get_near_names():
  with pytest.raises(ValueError, match="'dopri6'; did you mean 'dopri5'"):
    solver("dopri6")


def test_zero_weights_cost_nothing():
  assert ode.MIDPOINT.b[0] == 0
  program = str(
    jax.make_jaxpr(lambda x: ode.advance(x, 0.5, (0.0, 1.0), (x, x)))(1.0)
  )
  assert program.count(" mul ") == 1


def test_float64_does_not_outlive_its_tests():
  assert schedule.uniform(2).dtype == jnp.float32
