"""Solvers: consistent tableaux, their orders, the original's end states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import schedule
from lumina_jax.flow.ode import SOLVERS, solve

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
every_solver = pytest.mark.parametrize("name", SOLVERS)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def swing(x, t):
  return jnp.cos(3 * t) * x


@every_solver
def test_tableaux_are_explicit_and_consistent(name):
  tableau = SOLVERS[name]
  assert [len(row) for row in tableau.a] == list(range(tableau.evaluations))
  assert sum(tableau.b) == pytest.approx(1)
  assert all(0 <= c <= 1 for c in tableau.c)
  if tableau.order >= 2:
    by_c = sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True))
    assert by_c == pytest.approx(1 / 2)


@every_solver
def test_error_falls_with_the_order(name, x64):
  x = jnp.array([0.5, 1.0, 1.2])
  exact = 1 / (1 / x - 1 / 2)  # of dx/dt = t x^2

  def error(steps):
    times = schedule.uniform(steps)
    end = solve(lambda x, t: t * x**2, x, times, SOLVERS[name])
    return np.abs(end - exact).max()

  order = np.log2(error(40) / error(80))
  assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


@every_solver
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_constant_velocity_is_solved_exactly(name, factor):
  x, slope = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])
  times = schedule.shift(schedule.uniform(7), factor)
  end = solve(lambda x, t: slope, x, times, SOLVERS[name])
  np.testing.assert_allclose(end, x + slope, rtol=1e-6)


@every_solver
def test_a_solution_may_be_cut_anywhere(name, x64):
  x, times, tableau = jnp.ones(3), schedule.uniform(9), SOLVERS[name]
  middle = solve(swing, x, times[:5], tableau)
  np.testing.assert_allclose(
    solve(swing, middle, times[4:], tableau),
    solve(swing, x, times, tableau),
    rtol=1e-12,
  )


def test_time_may_run_backwards(x64):
  x, times = jnp.ones(3), schedule.uniform(50)
  there = solve(swing, x, times, SOLVERS["rk4"])
  back = solve(swing, there, times[::-1], SOLVERS["rk4"])
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
@pytest.mark.parametrize("name", ["euler", "midpoint"])
def test_end_states_equal_the_original(name, points, factor, x64):
  golden = load_file(GOLDEN)
  end = solve(
    golden_field,
    jnp.asarray(golden["ode_x0"]),
    golden_times(points, factor),
    SOLVERS[name],
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


def test_float64_does_not_outlive_its_tests():
  assert schedule.uniform(2).dtype == jnp.float32
