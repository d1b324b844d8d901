"""Stochastic solvers: exact moments of their ends.

With Gaussian data the exact velocity is affine in x, and so is a step in x and
its noise. Unit vectors in place of x and of each step's noise therefore give
the mean and the covariance at the end, with no sampling error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import noise, ode, schedule
from lumina_jax.flow.path import GVP, LINEAR, PATHS, VP
from lumina_jax.flow.samples import batch
from lumina_jax.flow.sde import FORMS, LAST, EulerMaruyama, Heun

SOLVERS = (EulerMaruyama, Heun)
MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[0.5, 0.3], [0.3, 0.4]])

every_solver = pytest.mark.parametrize("Solver", SOLVERS)
every_form = pytest.mark.parametrize("form", FORMS)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
long = pytest.mark.long


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def exact(path, width, x, t):
  """E[alpha' x1 + sigma' x0 | x_t], `[B, 2]`, of Gaussian data."""
  mean, variances, axes = (
    values.astype(x.dtype) for values in (MEAN, *np.linalg.eigh(COVARIANCE))
  )
  t = t[..., None]
  alpha, sigma = path.alpha(t), path.sigma(t)
  y = (x - alpha * mean) @ axes / (alpha**2 * width * variances + sigma**2)
  x1 = mean + alpha * width * (y * variances) @ axes.T
  return path.d_alpha(t) * x1 + path.d_sigma(t) * sigma * y @ axes.T


STEPS = 200


def uniform(steps):
  """As `schedule.uniform`, but on the host, where nothing compiles."""
  return np.linspace(0.0, 1.0, steps + 1)


@functools.partial(jax.jit, static_argnums=0)
def _ends(solver, width, times):
  """Ends of x = 0, of unit vectors, and of x = 0 with one unit of noise."""
  velocity = ode.stateless(functools.partial(exact, solver.path, width))
  unit, zeros = np.eye(2), np.zeros((2, 2))
  x = np.concatenate([np.zeros((1, 2)), unit, np.tile(zeros, (STEPS, 1))])
  unit_noise = np.concatenate([np.zeros((3, 2)), np.tile(unit, (STEPS, 1))])
  # Steps of length 0, with which grids are padded, have no noise.
  at = jnp.where(times[1:] > times[:-1], times[:-1], jnp.nan)
  at = jnp.concatenate([jnp.full(3, jnp.nan), jnp.repeat(at, 2)])
  normal = lambda t: jnp.where((t == at)[:, None], unit_noise, 0.0)  # noqa: E731
  x = jnp.asarray(x)
  times = jnp.broadcast_to(times[:, None], (STEPS + 1, len(x)))
  return ode.solve(velocity, x, times, solver, batch(x)._replace(normal=normal))


def moments(solver, times, width=1.0):
  """Mean and covariance of x at times[-1]."""
  times = np.pad(times, (STEPS + 1 - len(times), 0), mode="edge")
  ends = np.asarray(_ends(solver, width, times))
  constant, linear, noised = ends[0], ends[1:3] - ends[0], ends[3:] - ends[0]
  return constant, linear.T @ linear + noised.T @ noised


def error(solver, times, width=1.0):
  mean, covariance = moments(solver, times, width)
  of_covariance = np.abs(covariance - width * COVARIANCE).max()
  return max(np.abs(mean - MEAN).max(), of_covariance)


# Each takes a program of its own, so the default ones differ in kind. Those of
# "tweedie" on the linear path are shared with the test of convergence.
KINDS = [*((last, LINEAR) for last in LAST), ("tweedie", GVP), ("tweedie", VP)]
DEFAULT = [
  *((EulerMaruyama, "sigma", last, LINEAR) for last in LAST),
  *((Heun, "sigma", last, LINEAR) for last in ("mean", "tweedie")),
  (EulerMaruyama, "sbdm", "tweedie", GVP),
  *((Solver, "sbdm", "tweedie", VP) for Solver in SOLVERS),
]
MORE = [
  (Solver, form, *kind)
  for Solver in SOLVERS
  for form in FORMS
  for kind in KINDS
  if (Solver, form, *kind) not in DEFAULT
]


@pytest.mark.parametrize(
  ("Solver", "form", "last", "path"),
  [*DEFAULT, *(pytest.param(*each, marks=long) for each in MORE)],
  ids=lambda value: getattr(value, "__name__", getattr(value, "name", value)),
)
def test_ends_have_the_distribution_of_data(Solver, form, last, path, x64):
  solver = Solver(form, last=last, path=path)
  for factor in (1.0, 4.0):
    times = schedule.shift(uniform(STEPS), factor)
    assert error(solver, times) < (0.015 if path is LINEAR else 0.02), factor


@every_form
@every_solver
def test_ends_converge_with_the_step(Solver, form, x64):
  solver = Solver(form, last="tweedie")
  coarse, fine = (
    error(solver, schedule.shift(uniform(n), 2.0)) for n in (25, STEPS)
  )
  assert fine < coarse / 3.5


@every_path
@every_solver
def test_data_of_no_width_end_without_noise(Solver, path, x64):
  # Ends as stiff as those of images, on a grid as coarse as that of previews.
  times = schedule.shift(uniform(25), 4.0)
  solver = Solver("constant", last="tweedie", path=path)
  assert error(solver, times, width=1e-6) < 1e-5


@pytest.mark.parametrize(
  "Solver", [EulerMaruyama, pytest.param(Heun, marks=long)]
)
def test_samples_have_the_moments_of_their_steps(Solver, x64):
  solver, count = Solver("linear", norm=2.0), 10_000
  times = uniform(20)

  @jax.jit
  def end(key):
    x = jax.random.normal(key, (count, 2))
    normal = noise.normal(jax.random.split(key, count), x)
    velocity = ode.stateless(functools.partial(exact, LINEAR, 1.0))
    each = np.broadcast_to(times[:, None], (len(times), count))
    samples = batch(x)._replace(normal=normal)
    return ode.solve(velocity, x, each, solver, samples)

  ends = np.asarray(end(jax.random.key(5)))
  mean, covariance = moments(solver, times)
  np.testing.assert_allclose(ends.mean(0), mean, atol=4 / count**0.5)
  np.testing.assert_allclose(np.cov(ends.T), covariance, atol=4 / count**0.5)


@every_path
@pytest.mark.parametrize(
  "form",
  ["sbdm", *(pytest.param(x, marks=long) for x in FORMS if x != "sbdm")],
)
def test_all_is_finite_up_to_the_ends(form, path):
  """At t = 0 and t = 1 the diffusion or the score of a path is infinite."""
  velocity = ode.stateless(functools.partial(exact, path, 1.0))
  solvers = [
    EulerMaruyama(form, 3.0, "mean", path),
    Heun(form, 3.0, "none", path),
  ]

  @jax.jit
  def ends(key):
    x = jax.random.normal(key, (6, 2))
    samples = batch(x)._replace(normal=lambda t: x)
    times = np.broadcast_to(uniform(2)[:, None], (3, 6))
    found = [ode.solve(velocity, x, times, s, samples) for s in solvers]
    return jnp.stack(found), solvers[0].diffusion(times)

  found, diffusion = ends(jax.random.key(5))
  assert np.abs(found).max() < 30
  assert np.isfinite(diffusion).all()
