"""Fixed-step solvers: tableaux, orders, the original's end states."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import ode, schedule
from lumina_jax.flow.ode import Segment, Tableau, run, stateless
from lumina_jax.flow.samples import SINGLE, Samples, batch
from lumina_jax.flow.solvers import SOLVERS

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
TABLEAUX = [name for name in SOLVERS if isinstance(SOLVERS[name], Tableau)]
FIXED = [*TABLEAUX, "ab2", "dpm2m"]
every_tableau = pytest.mark.parametrize("name", TABLEAUX)
every_solver = pytest.mark.parametrize("name", FIXED)
# One solver per implementation of `step`.
each_kind = pytest.mark.parametrize("name", ["rk4_38", "ab2", "dpm2m"])
# Names of torchdiffeq, and so of the original, that differ from ours.
TORCHDIFFEQ = {"rk4": "rk4_38"}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def uniform(steps):
  """As `schedule.uniform`, but on the host, where nothing compiles."""
  return np.linspace(0.0, 1.0, steps + 1)


def swing(x, t):
  return jnp.cos(3 * t) * x


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def solve(name, field, x, times, samples=SINGLE):
  return ode.solve(stateless(field), x, times, SOLVERS[name], samples)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ends(name, field, x, grids):
  one = lambda times: ode.solve(stateless(field), x, times, SOLVERS[name])  # noqa: E731
  return jax.vmap(one)(grids)


def ends(name, field, x, grids):
  """Solves along several grids in one program.

  Shorter grids begin with steps of length 0, which change nothing.
  """
  steps = max(map(len, grids))
  grids = [np.pad(grid, (steps - len(grid), 0), mode="edge") for grid in grids]
  return _ends(name, field, x, np.array(grids, float))


@every_tableau
def test_tableaux_are_explicit_and_consistent(name):
  tableau = SOLVERS[name]
  assert [len(row) for row in tableau.a] == list(range(tableau.evaluations))
  assert sum(tableau.b) == pytest.approx(1)
  assert all(0 <= c <= 1 for c in tableau.c)
  if tableau.order >= 2:
    by_c = sum(b * c for b, c in zip(tableau.b, tableau.c, strict=True))
    assert by_c == pytest.approx(1 / 2)


def orders(name, field, x, exact, makers, steps):
  """Observed orders on grids of so many steps and twice as many."""
  grids = [make(n) for make in makers for n in (steps, 2 * steps)]
  error = np.abs(ends(name, field, x, grids) - exact).max(axis=-1)
  return np.log2(error[::2] / error[1::2])


@pytest.mark.parametrize("name", [*TABLEAUX, "ab2"])
def test_the_error_falls_with_the_order(name, x64):
  x = np.array([0.5, 1.0, 1.2])
  exact = 1 / (1 / x - 1 / 2)
  field = lambda x, t: t * x**2  # noqa: E731
  found = orders(name, field, x, exact, [uniform], 160)
  assert found == pytest.approx(SOLVERS[name].order, abs=0.25)


def gaussian(x, t, mean=0.7, deviation=0.5):
  """The velocity of data N(mean, deviation^2); data are mean + deviation x0."""
  variance = (t * deviation) ** 2 + (1 - t) ** 2
  return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)


@pytest.mark.parametrize(
  ("name", "least", "most"),
  [
    ("euler", 0.9, 1.15),
    ("midpoint", 1.85, 3.15),  # Third on a linear field.
    ("heun", 1.9, 2.15),
    ("ab2", 1.85, 2.15),
    ("dpm2m", 1.7, 2.15),
  ],
)
def test_orders_on_the_way_to_gaussian_data(name, least, most, x64):
  x = np.array([-1.3, 0.2, 1.7])
  grids = [
    uniform,
    lambda steps: schedule.shift(uniform(steps), 3.0),
  ]
  if name in ("midpoint", "ab2"):  # Steps of uneven length.
    grids.append(schedule.sigmoid)
  found = orders(name, gaussian, x, 0.7 + 0.5 * x, grids, 640)
  assert np.all((least < found) & (found < most)), found


def test_dpm_reaches_data_at_one_point_in_one_step(x64):
  """There the predicted data are constant, which it solves exactly."""
  data = np.array([0.3, -2.0])
  toward = lambda x, t: (data - x) / (1 - t)  # noqa: E731
  grids = [uniform(steps) for steps in (1, 2, 5)]
  found = ends("dpm2m", toward, np.ones(2), grids)
  np.testing.assert_allclose(found, [data] * 3, rtol=1e-12)


def test_a_last_time_beside_one_counts_as_one(x64):
  times = schedule.shift(uniform(20), 3.3)
  grids = [times] + [
    np.append(times[:-1], end) for end in (1.0, 1 - 2.5e-7, 1 + 1e-7)
  ]
  expected, *found = ends("dpm2m", gaussian, np.array([-1.3, 0.2, 1.7]), grids)
  np.testing.assert_allclose(found, [expected] * 3, atol=1e-5)


def swing_batch(x, t):
  return jnp.cos(3 * t)[:, None] * x


LAYOUT = batch(np.zeros((3, 2)))


@pytest.mark.parametrize("name", [*FIXED, "dopri5"])
def test_samples_may_have_times_of_their_own(name, x64):
  x = np.linspace(0.5, 1.5, 6).reshape(3, 2)
  grid = np.linspace(0, 1, 7)
  times = np.stack(
    [grid / (grid + f * (1 - grid)) for f in (0.5, 1.0, 4.0)], axis=1
  )
  times[:, 2] = 0.3 + 0.7 * times[:, 2]
  together = solve(name, swing_batch, x, times, LAYOUT)
  alone = [solve(name, swing, x[i], times[:, i]) for i in range(3)]
  np.testing.assert_allclose(together, alone, rtol=1e-12)


def swing_tree(x, t):
  return {"a": swing(x["a"], t), "b": swing(x["b"], t)}


TREE = Samples(lambda h: {"a": h, "b": h}, mean=None)


@each_kind
def test_states_may_be_trees(name, x64):
  x, times = np.arange(1.0, 8.0), uniform(7)
  tree = {"a": x[:3], "b": x[3:].reshape(2, 2)}
  end = solve(name, swing_tree, tree, times, TREE)
  alone = solve(name, swing, x, times)
  found = np.concatenate([end["a"], end["b"].ravel()])
  np.testing.assert_allclose(found, alone, rtol=1e-12)


SLOPE = np.array([3.0, 0.5])


@pytest.mark.parametrize("name", [*FIXED, "dopri5"])
def test_constant_velocity_is_solved_exactly(name):
  x, times = np.array([1.0, -2.0]), uniform(7)
  grids = [times, schedule.shift(times, 4.0)]
  found = ends(name, lambda x, t: jnp.asarray(SLOPE, x.dtype), x, grids)
  np.testing.assert_allclose(found, [x + SLOPE] * 2, rtol=1e-6)


@every_tableau
def test_one_step_methods_may_restart_anywhere(name, x64):
  x, times = np.ones(3), uniform(8)
  middle = solve(name, swing, x, times[:5])
  end = solve(name, swing, middle, times[4:])
  np.testing.assert_allclose(end, solve(name, swing, x, times), rtol=1e-12)


@each_kind
def test_the_velocity_may_change_between_segments(name, x64):
  slower = lambda x, t: 0.5 * x  # noqa: E731

  @jax.jit
  def end(x, times):
    first = Segment(stateless(swing), times[:201])
    second = Segment(stateless(slower), times[200:])
    return run([first, second], x, SOLVERS[name]).x

  exact = np.exp(np.sin(1.5) / 3 + 0.25)
  found = end(np.ones(3), uniform(400))
  np.testing.assert_allclose(found, exact, rtol=3e-3)


# Error left after 40 steps to noise and back, by the order.
ACCURACY = {1: 0.2, 2: 1e-2, 3: 1e-3, 4: 1e-4, 5: 2e-2}


@pytest.mark.parametrize("name", [*TABLEAUX, "ab2", "dopri5"])
def test_time_may_run_backwards(name, x64):
  x, times = np.array([-0.4, 0.9, 1.5]), uniform(40)
  noise = solve(name, gaussian, x, times[::-1])
  assert np.abs(noise - x).max() > 0.3
  data = solve(name, gaussian, noise, times)
  np.testing.assert_allclose(data, x, atol=ACCURACY[SOLVERS[name].order])


@each_kind
def test_the_state_keeps_its_dtype(name):
  field = lambda x, t: swing(x.astype(jnp.float32), t)  # noqa: E731
  x = jnp.ones(3, jnp.bfloat16)
  end = solve(name, field, x, uniform(4))
  assert end.dtype == jnp.bfloat16


@each_kind
def test_other_times_do_not_recompile(name):
  traces = []

  @jax.jit
  def end(x, times):
    traces.append(None)
    return ode.solve(stateless(swing), x, times, SOLVERS[name])

  times = uniform(6)
  found = [end(np.ones(3), schedule.shift(times, f)) for f in (1, 2, 4)]
  assert len(traces) == 1
  assert len(np.unique([each[0] for each in found])) == 3


@every_solver
def test_the_program_holds_one_step(name):
  for steps in (2, 20):
    program = jax.make_jaxpr(
      lambda x, times: ode.solve(stateless(swing), x, times, SOLVERS[name])
    )(np.ones(3), np.linspace(0, 1, steps + 1))
    assert str(program).count("= cos ") == SOLVERS[name].evaluations


def golden_field(x, t):
  return jnp.cos(3 * t) * x - 0.5 * x**2 / (1 + x**2)


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun3", "rk4"])
def test_end_states_equal_the_original(name, x64):
  golden = load_file(GOLDEN)
  keys = [(points, factor) for points in (6, 11) for factor in (1, 4)]
  grids = [schedule.shift(uniform(p - 1), f) for p, f in keys]
  x = golden["ode_x0"]
  found = ends(TORCHDIFFEQ.get(name, name), golden_field, x, grids)
  assert found.dtype == jnp.float64
  for (points, factor), end in zip(keys, found, strict=True):
    expected = golden[f"ode_{name}_points{points}_shift{factor}"]
    np.testing.assert_allclose(end, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
  ("name", "points"), [("heun", 2001), ("midpoint", 2001), ("rk4", 101)]
)
def test_fine_grids_reach_the_originals_adaptive_solution(name, points, x64):
  golden = load_file(GOLDEN)
  x, times = golden["ode_x0"], uniform(points - 1)
  end = solve(name, golden_field, x, times)
  expected = golden["ode_dopri5_points11_shift1"]
  np.testing.assert_allclose(end, expected, atol=1e-6, rtol=0)


def test_zero_weights_cost_nothing():
  assert ode.MIDPOINT.b[0] == 0
  program = str(
    jax.make_jaxpr(lambda x: ode.advance(x, 0.5, (0.0, 1.0), (x, x)))(1.0)
  )
  assert program.count(" mul ") == 1


def test_float64_does_not_outlive_its_tests():
  assert schedule.uniform(2).dtype == jnp.float32
