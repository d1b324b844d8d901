"""Stochastic solvers: exact moments, the original's diffusions, noise by time.

With Gaussian data the exact velocity is affine in x, and so is a step in x and
its noise. Unit vectors in place of x and of each step's noise therefore give
the mean and the covariance at the end, with no sampling error.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import noise, ode, schedule
from lumina_jax.flow.path import GVP, LINEAR, PATHS, VP
from lumina_jax.flow.samples import TOGETHER, batch
from lumina_jax.flow.sde import FORMS, LAST, SHARE, EulerMaruyama, Heun

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
SOLVERS = (EulerMaruyama, Heun)
KEY = jax.random.key(5)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[0.5, 0.3], [0.3, 0.4]])

every_solver = pytest.mark.parametrize("Solver", SOLVERS)
every_form = pytest.mark.parametrize("form", FORMS)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
long = [pytest.mark.slow, pytest.mark.long]
# Each takes programs of its own; what is left out is among the long tests.
telling_forms = pytest.mark.parametrize(
  "form",
  [x if x in ("sigma", "sbdm") else pytest.param(x, marks=long) for x in FORMS],
)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@functools.cache
def exact(path, width=1.0):
  """E[alpha' x1 + sigma' x0 | x_t], `[B, 2]`, of Gaussian data."""
  of_data = (MEAN, *np.linalg.eigh(width * COVARIANCE))

  def velocity(x, t):
    mean, variances, axes = (jnp.asarray(each, x.dtype) for each in of_data)
    t = t[..., None]
    alpha, sigma = path.alpha(t), path.sigma(t)
    y = (x - alpha * mean) @ axes / (alpha**2 * variances + sigma**2)
    x1 = mean + alpha * (y * variances) @ axes.T
    return path.d_alpha(t) * x1 + path.d_sigma(t) * sigma * y @ axes.T

  return velocity


@jax.jit(static_argnums=(0, 1, 2))
def _ends(solver, velocity, steps, times):
  unit, nothing = np.eye(2), np.zeros((2, 2))
  x = np.concatenate([np.zeros((1, 2)), unit, np.tile(nothing, (steps, 1))])
  drawn = np.concatenate([np.zeros((3, 2)), np.tile(unit, (steps, 1))])
  at = jnp.concatenate([jnp.full(3, jnp.nan), jnp.repeat(times[:-1], 2)])
  normal = lambda t: jnp.where((t == at)[:, None], drawn, 0.0)  # noqa: E731
  x = jnp.asarray(x)
  times = jnp.broadcast_to(times[:, None], (steps + 1, len(x)))
  return ode.solve(velocity, x, times, solver, batch(x)._replace(normal=normal))


def moments(solver, times, width=1.0):
  """Mean and covariance of x at times[-1]."""
  velocity = exact(solver.path, width)
  ends = np.asarray(_ends(solver, velocity, len(times) - 1, times))
  constant, linear, drawn = ends[0], ends[1:3] - ends[0], ends[3:] - ends[0]
  return constant, linear.T @ linear + drawn.T @ drawn


def error(solver, times, width=1.0):
  mean, covariance = moments(solver, times, width)
  of_covariance = np.abs(covariance - width * COVARIANCE).max()
  return max(np.abs(mean - MEAN).max(), of_covariance)


@every_path
@every_form
def test_diffusions_equal_the_original(path, form):
  golden, original = load_file(GOLDEN), form.replace("_", "-")
  original = "SBDM" if form == "sbdm" else original
  diffusion = EulerMaruyama(form, norm=1.3, path=path).diffusion(golden["t"])
  expected = golden[f"{path.name}_diffusion_{original}"].ravel()
  np.testing.assert_allclose(diffusion, expected, rtol=1e-5, atol=1e-5)


@telling_forms
@every_solver
def test_ends_have_the_distribution_of_data(Solver, form, x64):
  for factor in (1.0, 4.0):
    times = schedule.shift(schedule.uniform(200), factor)
    for last in LAST:
      assert error(Solver(form, last=last), times) < 0.015, (factor, last)
    for path in (GVP, VP):
      solver = Solver(form, last="tweedie", path=path)
      assert error(solver, times) < 0.02, (factor, path.name)


@every_form
@every_solver
def test_ends_converge_with_the_step(Solver, form, x64):
  solver = Solver(form, last="tweedie")
  coarse, fine = (
    error(solver, schedule.shift(schedule.uniform(n), 2.0)) for n in (25, 200)
  )
  assert fine < coarse / 3.5


@every_path
@every_solver
def test_data_of_no_width_end_clean(Solver, path, x64):
  # Ends as stiff as those of pictures, on a grid as coarse as that of previews.
  times = schedule.shift(schedule.uniform(25), 4.0)
  solver = Solver("constant", last="tweedie", path=path)
  assert error(solver, times, width=1e-6) < 1e-5


@every_solver
def test_samples_have_the_moments_of_their_steps(Solver, x64):
  solver, count = Solver("linear", norm=2.0), 10_000
  times = schedule.uniform(20)
  x = jax.random.normal(KEY, (count, 2))
  samples = batch(x)._replace(
    normal=noise.normal(jax.random.split(KEY, count), x)
  )
  each = jnp.broadcast_to(times[:, None], (len(times), count))
  ends = ode.solve(exact(LINEAR), x, each, solver, samples)
  mean, covariance = moments(solver, times)
  np.testing.assert_allclose(ends.mean(0), mean, atol=4 / count**0.5)
  np.testing.assert_allclose(jnp.cov(ends.T), covariance, atol=4 / count**0.5)


def test_the_original_defaults_are_not_limited():
  solver = EulerMaruyama()
  times = np.append(np.linspace(0, 0.96, 250), 1.0)
  taken = solver.diffusion(times[:-1]) * np.diff(times)
  assert (taken[:-1] < SHARE * LINEAR.sigma(times[1:-1]) ** 2).all()
  assert taken[-1] <= LINEAR.sigma(times[-2]) ** 2 * (1 + 1e-6)


def swing(x, t):
  return jnp.cos(3 * jnp.reshape(t, t.shape + (1,) * (x.ndim - t.ndim))) * x


def together(x, key=KEY):
  return TOGETHER._replace(normal=noise.normal(key, x))


def one_last_step(solver, x, t):
  return ode.solve(swing, x, jnp.array([t, 1.0]), solver, together(x))


@every_solver
def test_the_last_step_is_as_told(Solver):
  x, t = jnp.array([0.3, -2.0]), jnp.float32(0.9)
  v, sigma = swing(x, t), 1 - t
  score = -(x - t * v) / sigma
  expected = {
    "mean": x + sigma * (v + sigma * score),
    "tweedie": (x + sigma**2 * score) / t,
    "euler": x + sigma * v,
  }
  for last, end in expected.items():
    there = one_last_step(Solver(last=last), x, t)
    np.testing.assert_allclose(there, end, rtol=1e-5, err_msg=last)


@pytest.mark.parametrize(
  "form", [form for form in FORMS if form != "decreasing"]
)
@pytest.mark.parametrize(
  ("Solver", "plain"), [(EulerMaruyama, ode.EULER), (Heun, ode.HEUN)]
)
def test_without_diffusion_it_is_the_ode(Solver, plain, form):
  x, times = jnp.array([1.0, -2.0]), schedule.shift(schedule.uniform(9), 3.0)
  solver = Solver(form, norm=0.0, last="none")
  np.testing.assert_allclose(
    ode.solve(swing, x, times, solver, together(x)),
    ode.solve(swing, x, times, plain),
    rtol=1e-6,
  )


@every_solver
def test_a_solution_may_be_cut_anywhere(Solver):
  x, times = jnp.ones((3, 4)), schedule.shift(schedule.uniform(9), 3.0)
  whole = ode.solve(swing, x, times, Solver(), together(x))
  for cut in (1, 8):
    part = ode.solve(swing, x, times[: cut + 1], Solver(), together(x))
    rest = ode.solve(swing, part, times[cut:], Solver(), together(x))
    np.testing.assert_array_equal(rest, whole)


@every_solver
def test_samples_of_a_batch_do_not_see_each_other(Solver):
  x = jax.random.normal(KEY, (3, 4, 2))
  keys = jax.random.split(KEY, 3)
  times = jnp.stack(
    [
      schedule.shift(schedule.uniform(8), 4.0),
      schedule.uniform(8),
      jnp.linspace(0.5, 1.0, 9),
    ],
    axis=1,
  )
  samples = batch(x)._replace(normal=noise.normal(keys, x))
  ends = ode.solve(swing, x, times, Solver(), samples)
  for i in range(3):
    alone = ode.solve(
      swing, x[i], times[:, i], Solver(), together(x[i], keys[i])
    )
    np.testing.assert_allclose(ends[i], alone, rtol=1e-5, atol=1e-6)


def test_noise_belongs_to_key_and_time():
  x, keys = jnp.ones((2, 500)), jax.random.split(KEY, 2)
  of_time = noise.normal(keys, x)
  first = of_time(jnp.array([0.25, 0.25]))
  np.testing.assert_array_equal(first, of_time(jnp.float32(0.25)))
  np.testing.assert_array_equal(
    first[1], noise.normal(keys[1], x[1])(jnp.float32(0.25))
  )
  later = of_time(jnp.nextafter(jnp.float32(0.25), 1.0))
  values = np.concatenate([first, later])
  assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 0.2
  np.testing.assert_allclose(values.std(), 1, atol=0.1)


@every_solver
def test_evaluations_are_counted(Solver):
  x, seen = jnp.ones(3), []

  def velocity(x, t):
    jax.debug.callback(seen.append, t)
    return swing(x, t)

  part = ode.Segment(velocity, schedule.uniform(7))
  state = ode.run([part], x, Solver(), together(x))
  jax.effects_barrier()
  assert state.evaluations == len(seen) == 7 * Solver.evaluations


@every_solver
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_state_keeps_its_dtype(Solver, dtype):
  x = jnp.ones(3, dtype)
  end = ode.solve(swing, x, schedule.uniform(4), Solver(), together(x))
  assert end.dtype == dtype


@every_path
@telling_forms
def test_all_is_finite_to_the_ends(form, path):
  x = jax.random.normal(KEY, (6, 2))
  samples = batch(x)._replace(normal=lambda t: x)
  times = jnp.broadcast_to(schedule.uniform(2)[:, None], (3, 6))
  solvers = [
    Solver(form, 3.0, last, path)
    for Solver, last in itertools.product(SOLVERS, ("mean", "none"))
  ]

  @jax.jit
  def run(x):
    return [ode.solve(exact(path), x, times, s, samples) for s in solvers]

  assert jnp.abs(jnp.stack(run(x))).max() < 30
  assert jnp.isfinite(solvers[0].diffusion(times)).all()


@every_solver
@pytest.mark.parametrize("end", [1 - 2.4e-7, 1 + 1.2e-7])
def test_a_last_time_beside_one_is_the_last(Solver, end):
  # As times are that float32 shifted past the last bit of 1.
  x, times = jnp.array([0.5, 2.0]), schedule.uniform(5)
  state = lambda last: ode.solve(  # noqa: E731
    swing, x, last, Solver(last="tweedie"), together(x)
  )
  missed = times.at[-1].set(end)
  assert missed[-1] != 1
  np.testing.assert_allclose(state(missed), state(times), rtol=1e-5)


@every_solver
def test_other_times_do_not_recompile(Solver):
  traces = []

  @jax.jit
  def run(x, times):
    traces.append(None)
    return ode.solve(swing, x, times, Solver(), together(x))

  ends = [
    run(jnp.ones(3), schedule.shift(schedule.uniform(6), factor))
    for factor in (1.0, 2.0, 4.0)
  ]
  assert len(traces) == 1
  assert len(np.unique([end[0] for end in ends])) == 3


@every_solver
def test_solvers_are_hashable(Solver):
  assert len({Solver(), Solver("sigma"), Solver("linear")}) == 2


@every_solver
@pytest.mark.parametrize(
  ("wrong", "told"),
  [
    ({"form": "increasing-decreasing"}, "mean 'increasing_decreasing'"),
    ({"form": "SBDM"}, "use one of: constant, sbdm"),
    ({"last": "tweedy"}, "mean 'tweedie'"),
    ({"norm": -1.0}, "norm = -1.0: must be 0 or more"),
  ],
)
def test_wrong_settings_are_told(Solver, wrong, told):
  with pytest.raises(ValueError, match=told):
    Solver(**wrong)


@every_solver
def test_samples_without_noise_are_told(Solver):
  with pytest.raises(ValueError, match=r"no normal: .* noise\.normal"):
    ode.solve(swing, jnp.ones(3), schedule.uniform(2), Solver())
