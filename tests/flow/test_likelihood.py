"""Densities of Gaussian data under their exact flow, which is affine in x."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.adaptive import DormandPrince
from lumina_jax.flow.likelihood import (
  Density,
  basis,
  bits_per_dimension,
  counted,
  log_density,
  nats_per_dimension,
  rademacher,
)
from lumina_jax.flow.multistep import AdamsBashforth, DpmSolver
from lumina_jax.flow.ode import MIDPOINT, RK4, solve
from lumina_jax.flow.samples import Samples, batch
from lumina_jax.flow.sde import EulerMaruyama, Stochastic
from lumina_jax.flow.solvers import SOLVERS

KEY = jax.random.key(2)
MEAN = np.array([0.5, -1.0, 0.2])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.6, 0.7, 0.0], [-0.3, 0.4, 0.5]])
COVARIANCE = FACTOR @ FACTOR.T
STEPS = 40
DOPRI5 = DormandPrince(rtol=1e-6, atol=1e-7)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def exact(x, t, mean=MEAN, covariance=COVARIANCE):
  """E[x1 - x0 | x_t] of Gaussian data on the linear path, `[B, 3]`."""
  variances, axes = np.linalg.eigh(covariance)
  t = t[..., None]
  y = (x - t * mean) @ axes / (t**2 * variances + (1 - t) ** 2)
  return mean + ((t * variances - (1 - t)) * y) @ axes.T


def normal_log_density(x, mean=MEAN, covariance=COVARIANCE):
  y = np.asarray(x, np.float64) - mean
  quadratic = np.einsum("bi,ij,bj->b", y, np.linalg.inv(covariance), y)
  volume = np.linalg.slogdet(2 * math.pi * covariance)[1]
  return -(quadratic + volume) / 2


def data(count=5):
  return MEAN + jax.random.normal(KEY, (count, 3)) @ FACTOR.T


def density(x, solver=RK4, probes=None, velocity=exact, **kwargs):
  probes = basis(x) if probes is None else probes
  times = schedule.uniform(STEPS)
  return log_density(velocity, x, times, solver, probes, **kwargs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_the_exact_trace_gives_the_exact_density(solver, dtype, x64):
  x = data().astype(dtype)
  found = density(x, solver)
  assert found.log_density.dtype == found.noise.dtype == dtype
  np.testing.assert_allclose(
    found.log_density, normal_log_density(x), atol=1e-4
  )
  np.testing.assert_array_equal(found.dimensions, [3.0] * 5)
  assert not found.behind.any()


@pytest.mark.parametrize(
  "solver", [MIDPOINT, AdamsBashforth()], ids=["midpoint", "ab2"]
)
def test_the_density_converges_with_the_step(solver, x64):
  x, expected = data(), normal_log_density(data())

  def error(steps):
    found = log_density(exact, x, schedule.uniform(steps), solver, basis(x))
    return np.abs(found.log_density - expected).max()

  coarse, fine = error(40), error(160)
  assert fine < 2e-3
  assert fine < coarse / 8


@pytest.mark.parametrize(
  "solver", [MIDPOINT, RK4, DOPRI5], ids=["midpoint", "rk4", "dopri5"]
)
def test_random_probes_estimate_it_without_bias(solver):
  x, seeds = data(1), 100

  @jax.jit
  @jax.vmap
  def estimate(key):
    return density(x, solver, rademacher(key[None], x)).log_density[0]

  found = np.asarray(estimate(jax.random.split(KEY, seeds)))
  error = found.std() / seeds**0.5
  assert error > 0.01
  assert abs(found.mean() - normal_log_density(x)[0]) < 3 * error


@pytest.mark.slow
@pytest.mark.long
def test_more_probes_scatter_less():
  x, seeds = data(1), 60

  def scatter(probes):
    one = lambda key: density(  # noqa: E731
      x, MIDPOINT, rademacher(key[None], x, probes)
    ).log_density[0]
    return float(jnp.std(jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))))

  assert scatter(16) == pytest.approx(scatter(1) / 4, rel=0.4)


def test_probes_are_signs_of_the_sample():
  x, keys = jnp.zeros((3, 50, 4)), jax.random.split(KEY, 3)
  probes = rademacher(keys, x, 2)
  assert set(np.unique(probes)) == {-1.0, 1.0}
  assert probes.shape == (2, 3, 50, 4)
  alone = rademacher(keys[1], x[1], 2)
  np.testing.assert_array_equal(alone, probes[:, 1])
  assert abs(jnp.corrcoef(probes.reshape(6, -1)) - np.eye(6)).max() < 0.3


def test_the_noise_is_where_the_flow_came_from():
  found = density(data(), DOPRI5)
  times = schedule.uniform(STEPS)[:, None] * jnp.ones(5)
  back = solve(exact, found.noise, times, DOPRI5, batch(found.noise))
  np.testing.assert_allclose(back, data(), atol=1e-4)


BACKWARDS = {
  name: solver
  for name, solver in SOLVERS.items()
  if not isinstance(solver, Stochastic | DpmSolver)
}
# The error in h that is left on this grid, by the order.
ACCURACY = {1: 0.2, 2: 1e-2, 3: 1e-3, 4: 1e-4, 5: 2e-2}


@pytest.mark.parametrize("name", BACKWARDS)
def test_there_and_back_is_where_it_began(name, x64):
  solver, x = BACKWARDS[name], data().astype(float)
  times = schedule.uniform(STEPS)[:, None] * jnp.ones(5)
  noise = solve(exact, x, times[::-1], solver, batch(x))
  assert jnp.abs(noise - x).max() > 0.3
  back = solve(exact, noise, times, solver, batch(x))
  np.testing.assert_allclose(back, x, atol=ACCURACY[solver.order])


@pytest.mark.slow
@pytest.mark.long
def test_a_flow_that_keeps_volumes_is_no_trouble():
  # Its integral stays 0, which no tolerance relative to it can be met at.
  turn = lambda x, t: x @ jnp.array([[0.0, 3.0], [-3.0, 0.0]])  # noqa: E731
  x = jax.random.normal(KEY, (4, 32, 2))
  probes = rademacher(jax.random.split(KEY, 4), x)
  found = density(x, DormandPrince(), probes, turn)
  assert not found.behind.any()
  assert found.evaluations < 100
  expected = jax.scipy.stats.norm.logpdf(x).sum((1, 2))
  np.testing.assert_allclose(found.log_density, expected, rtol=2e-3)


@pytest.mark.parametrize(
  "scale", [0.25, pytest.param(3.0, marks=pytest.mark.slow)]
)
def test_other_units_change_it_by_the_log_of_the_scale(scale):
  x, times = data(), schedule.uniform(STEPS)
  scaled = lambda x, t: exact(  # noqa: E731
    x, t, scale * MEAN, scale**2 * COVARIANCE
  )
  found = log_density(scaled, scale * x, times, RK4, basis(x)).log_density
  expected = density(x).log_density - 3 * math.log(scale)
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_samples_do_not_see_each_other(solver):
  x, keys = data(3), jax.random.split(KEY, 3)
  probes = rademacher(keys, x, 2)
  whole = density(x, solver, probes)
  for i in range(3):
    alone = density(x[i : i + 1], solver, probes[:, i : i + 1])
    np.testing.assert_allclose(
      alone.log_density[0], whole.log_density[i], rtol=1e-5
    )


def test_a_function_with_a_vjp_of_its_own_is_enough():
  @jax.custom_vjp
  def scaled(x, by):
    return x * by

  scaled.defvjp(
    lambda x, by: (x * by, (x, by)),
    lambda saved, g: (g * saved[1], jnp.sum(g * saved[0])),
  )
  velocity = lambda x, t: exact(scaled(x, jnp.float32(1.0)), t)  # noqa: E731
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda x: velocity(x, jnp.ones(5)), (data(),), (data(),))
  found = density(data(), velocity=velocity).log_density
  np.testing.assert_allclose(found, normal_log_density(data()), atol=1e-3)


@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_padding_does_not_count(solver):
  x = data(2)
  padded = jnp.pad(x, ((0, 0), (0, 2)), constant_values=7.0)
  mask = jnp.broadcast_to(jnp.arange(5) < 3, (2, 5))

  def velocity(x, t):  # of padding: what a network says of nothing.
    return jnp.concatenate([exact(x[:, :3], t), jnp.exp(x[:, 3:])], axis=1)

  found = density(
    padded, solver, basis(padded), velocity, samples=counted(mask)
  )
  expected = density(x, solver)
  np.testing.assert_allclose(found.log_density, expected.log_density, rtol=1e-5)
  np.testing.assert_array_equal(found.dimensions, [3.0, 3.0])
  np.testing.assert_array_equal(found.noise[:, 3:], 7.0)


def test_samples_may_share_a_row():
  x = data(4)
  row = Samples(
    spread=lambda values: values.reshape(4, 1),
    mean=lambda x: x.reshape(2, 2, 3).mean(-1),
  )
  velocity = lambda x, t: exact(x, t.reshape(4))  # noqa: E731
  found = density(x, probes=basis(x), velocity=velocity, samples=row)
  expected = normal_log_density(x).reshape(2, 2)
  np.testing.assert_allclose(found.log_density, expected, atol=1e-3)


def test_a_budget_too_small_is_told():
  hasty = DormandPrince(rtol=1e-6, atol=1e-7, max_evaluations=20)
  found = density(data(), hasty)
  assert found.behind.all()
  assert found.evaluations <= 20


def test_it_compiles_once_for_all_times():
  traces = []

  @jax.jit
  def run(x, times):
    traces.append(None)
    return log_density(exact, x, times, MIDPOINT, basis(x)).log_density

  for factor in (1.0, 2.0):
    run(data(), schedule.shift(schedule.uniform(8), factor))
  assert len(traces) == 1


@pytest.mark.parametrize("solver", [EulerMaruyama(), DpmSolver()])
def test_solvers_that_do_not_run_backwards_are_told(solver):
  with pytest.raises(ValueError, match=r"not solve data back .*dopri5"):
    density(data(), solver)


def known(log_density, dimensions=4.0):
  zero = jnp.zeros(1)
  return Density(log_density, zero, jnp.full(1, dimensions), 1, zero > 0)


def test_units_of_densities_known_by_hand():
  # Uniform on [-1, 1]: 256 equal levels take 8 bits each.
  uniform = known(jnp.full(1, 4 * math.log(1 / 2)))
  np.testing.assert_allclose(bits_per_dimension(uniform), 1)
  np.testing.assert_allclose(bits_per_dimension(uniform, 2 / 256), 8)
  np.testing.assert_allclose(
    nats_per_dimension(uniform), math.log(2), rtol=1e-6
  )
  # The entropy of a normal of unit variance.
  normal = known(jnp.full(1, -2 * math.log(2 * math.pi * math.e)))
  np.testing.assert_allclose(bits_per_dimension(normal), 2.0471, atol=1e-4)


def test_wrong_numbers_are_told():
  with pytest.raises(ValueError, match="probes = 0: at least 1"):
    rademacher(KEY, jnp.zeros(3), 0)
  with pytest.raises(ValueError, match=r"scale = 0: must be positive"):
    bits_per_dimension(known(jnp.zeros(1)), 0)
