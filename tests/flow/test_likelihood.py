"""Densities of Gaussian data under their exact flow, which is affine in x."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import ode, schedule
from lumina_jax.flow.adaptive import DormandPrince
from lumina_jax.flow.likelihood import (
  Density,
  basis,
  bits_per_dimension,
  log_density,
  nats_per_dimension,
  rademacher,
)
from lumina_jax.flow.multistep import AdamsBashforth, DpmSolver
from lumina_jax.flow.ode import MIDPOINT, RK4, stateless
from lumina_jax.flow.samples import Samples, batch, masked_batch
from lumina_jax.flow.sde import EulerMaruyama

MEAN = np.array([0.5, -1.0, 0.2])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.6, 0.7, 0.0], [-0.3, 0.4, 0.5]])
COVARIANCE = FACTOR @ FACTOR.T
STEPS = 40
DOPRI5 = DormandPrince(rtol=1e-6, atol=1e-7)
DATA = MEAN + np.random.default_rng(2).standard_normal((5, 3)) @ FACTOR.T
long = pytest.mark.long


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def exact(x, t, scale=1.0):
  """E[x1 - x0 | x_t] of scaled Gaussian data on the linear path, `[B, 3]`."""
  mean, variances, axes = (
    values.astype(x.dtype)
    for values in (scale * MEAN, *np.linalg.eigh(scale**2 * COVARIANCE))
  )
  t = t[..., None]
  y = (x - t * mean) @ axes / (t**2 * variances + (1 - t) ** 2)
  return mean + ((t * variances - (1 - t)) * y) @ axes.T


def normal_log_density(x):
  y = np.asarray(x, np.float64) - MEAN
  quadratic = np.einsum("bi,ij,bj->b", y, np.linalg.inv(COVARIANCE), y)
  volume = np.linalg.slogdet(2 * math.pi * COVARIANCE)[1]
  return -(quadratic + volume) / 2


@functools.partial(jax.jit, static_argnames=("solver", "velocity", "samples"))
def density(x, solver=RK4, probes=None, velocity=exact, times=None, **kwargs):
  probes = basis(x) if probes is None else probes
  times = np.linspace(0, 1, STEPS + 1) if times is None else times
  return log_density(stateless(velocity), x, times, solver, probes, **kwargs)


@functools.cache
def expected(solver=RK4):
  """The density of DATA in float32."""
  return density(DATA.astype(np.float32), solver)


@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_the_exact_trace_gives_the_exact_density(solver):
  found = expected(solver)
  assert found.log_density.dtype == found.noise.dtype == np.float32
  np.testing.assert_allclose(
    found.log_density, normal_log_density(DATA), atol=1e-4
  )
  np.testing.assert_array_equal(found.dimensions, [3.0] * 5)
  assert not found.behind.any()


def test_float64_stays_float64(x64):
  found = density(DATA)
  assert found.log_density.dtype == found.noise.dtype == np.float64
  np.testing.assert_allclose(
    found.log_density, normal_log_density(DATA), atol=1e-4
  )


@pytest.mark.parametrize(
  "solver", [MIDPOINT, AdamsBashforth()], ids=["midpoint", "ab2"]
)
def test_the_density_converges_with_the_step(solver, x64):
  def error(steps):
    found = density(DATA, solver, times=np.linspace(0, 1, steps + 1))
    return np.abs(found.log_density - normal_log_density(DATA)).max()

  coarse, fine = error(40), error(160)
  assert fine < 2e-3
  assert fine < coarse / 8


@pytest.mark.parametrize(
  "solver",
  [MIDPOINT, pytest.param(RK4, marks=long), DOPRI5],
  ids=["midpoint", "rk4", "dopri5"],
)
def test_random_probes_estimate_it_without_bias(solver):
  x, seeds = DATA[:1].astype(np.float32), 100

  @jax.jit
  @jax.vmap
  def estimate(key):
    return density(x, solver, rademacher(key[None], x)).log_density[0]

  found = np.asarray(estimate(jax.random.split(jax.random.key(2), seeds)))
  error = found.std() / seeds**0.5
  assert error > 0.01
  assert abs(found.mean() - normal_log_density(x)[0]) < 3 * error


@pytest.mark.e2e
@pytest.mark.long
def test_more_probes_scatter_less():
  x, keys = DATA[:1].astype(np.float32), jax.random.split(jax.random.key(2), 60)

  def scatter(probes):
    one = lambda key: density(  # noqa: E731
      x, MIDPOINT, rademacher(key[None], x, probes)
    ).log_density[0]
    return float(jnp.std(jax.jit(jax.vmap(one))(keys)))

  assert scatter(16) == pytest.approx(scatter(1) / 4, rel=0.4)


def test_probes_are_signs_of_the_sample():
  x, keys = (
    np.zeros((3, 50, 4), np.float32),
    jax.random.split(jax.random.key(2), 3),
  )
  probes = np.asarray(rademacher(keys, x, 2))
  assert set(np.unique(probes)) == {-1.0, 1.0}
  assert probes.shape == (2, 3, 50, 4)
  alone = rademacher(keys[1], x[1], 2)
  np.testing.assert_array_equal(alone, probes[:, 1])
  assert abs(np.corrcoef(probes.reshape(6, -1)) - np.eye(6)).max() < 0.3


def test_the_flow_carries_the_noise_to_the_data():
  noise = expected(DOPRI5).noise
  times = np.linspace(0, 1, 3, dtype=np.float32)[:, None] * np.ones(5)
  solve = jax.jit(
    lambda x: ode.solve(stateless(exact), x, times, DOPRI5, batch(x))
  )
  np.testing.assert_allclose(solve(noise), DATA, atol=1e-4)


@pytest.mark.e2e
@pytest.mark.long
def test_a_volume_preserving_flow_is_no_trouble():
  # Its integral stays 0, where no relative tolerance can be met.
  turn = lambda x, t: x @ jnp.array([[0.0, 3.0], [-3.0, 0.0]])  # noqa: E731
  x = jax.random.normal(jax.random.key(2), (4, 32, 2))
  probes = rademacher(jax.random.split(jax.random.key(2), 4), x)
  found = density(x, DormandPrince(), probes, turn)
  assert not found.behind.any()
  assert found.evaluations < 100
  expected = jax.scipy.stats.norm.logpdf(x).sum((1, 2))
  np.testing.assert_allclose(found.log_density, expected, rtol=2e-3)


@pytest.mark.parametrize(
  "scale", [0.25, pytest.param(3.0, marks=pytest.mark.e2e)]
)
def test_other_units_change_it_by_the_log_of_the_scale(scale):
  scaled = functools.partial(exact, scale=scale)
  x = (scale * DATA).astype(np.float32)
  found = density(x, velocity=scaled).log_density
  change = -3 * math.log(scale)
  np.testing.assert_allclose(found, expected().log_density + change, atol=2e-4)


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_samples_do_not_affect_each_other(solver):
  x = DATA[:3].astype(np.float32)
  probes = rademacher(jax.random.split(jax.random.key(2), 3), x, 2)
  whole = density(x, solver, probes)
  for i in range(3):
    alone = density(x[i : i + 1], solver, probes[:, i : i + 1])
    np.testing.assert_allclose(
      alone.log_density[0], whole.log_density[i], rtol=1e-5
    )


def test_a_function_with_a_custom_vjp_is_enough():
  @jax.custom_vjp
  def scaled(x, by):
    return x * by

  scaled.defvjp(
    lambda x, by: (x * by, (x, by)),
    lambda saved, g: (g * saved[1], jnp.sum(g * saved[0])),
  )
  velocity = lambda x, t: exact(scaled(x, jnp.float32(1.0)), t)  # noqa: E731
  x = DATA.astype(np.float32)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda x: velocity(x, jnp.ones(5)), (x,), (x,))
  found = density(x, velocity=velocity).log_density
  np.testing.assert_allclose(found, normal_log_density(DATA), atol=1e-3)


MASK = np.broadcast_to(np.arange(5) < 3, (5, 5))


def with_padding(x, t):
  """Whatever a network predicts for padding."""
  return jnp.concatenate([exact(x[:, :3], t), jnp.exp(x[:, 3:])], axis=1)


@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=["rk4", "dopri5"])
def test_padding_does_not_count(solver):
  x = np.pad(DATA, ((0, 0), (0, 2)), constant_values=7.0).astype(np.float32)
  found = density(x, solver, velocity=with_padding, samples=masked_batch(MASK))
  np.testing.assert_allclose(
    found.log_density, expected(solver).log_density, rtol=1e-5
  )
  np.testing.assert_array_equal(found.dimensions, [3.0] * 5)
  np.testing.assert_array_equal(found.noise[:, 3:], 7.0)


def test_samples_may_share_a_row():
  row = Samples(
    spread=lambda values: values.reshape(4, 1),
    mean=lambda x: x.reshape(2, 2, 3).mean(-1),
  )
  velocity = lambda x, t: exact(x, t.reshape(4))  # noqa: E731
  x = DATA[:4].astype(np.float32)
  found = density(x, velocity=velocity, samples=row).log_density
  expected = normal_log_density(x).reshape(2, 2)
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_budget_too_small_is_reported():
  hasty = DormandPrince(rtol=1e-6, atol=1e-7, max_evaluations=20)
  found = expected(hasty)
  assert found.behind.all()
  assert found.evaluations <= 20


def test_it_compiles_once_for_all_times():
  traces = []

  def velocity(x, t):
    traces.append(None)
    return exact(x, t)

  x, times = DATA.astype(np.float32), np.linspace(0, 1, 9)
  density(x, MIDPOINT, velocity=velocity, times=times)
  count = len(traces)
  density(x, MIDPOINT, velocity=velocity, times=schedule.shift(times, 2.0))
  assert len(traces) == count > 0


@pytest.mark.parametrize("solver", [EulerMaruyama(), DpmSolver()])
def test_solvers_that_only_run_forwards_are_refused(solver):
  with pytest.raises(ValueError, match=r"cannot solve data back .*dopri5"):
    density(DATA, solver)


def known(log_density, dimensions=4.0):
  zero = np.zeros(1)
  return Density(log_density, zero, np.full(1, dimensions), 1, zero > 0)


def test_units_of_densities_known_by_hand():
  # Uniform on [-1, 1]: 256 equal levels take 8 bits each.
  uniform = known(np.full(1, 4 * math.log(1 / 2)))
  np.testing.assert_allclose(bits_per_dimension(uniform), 1)
  np.testing.assert_allclose(bits_per_dimension(uniform, 2 / 256), 8)
  np.testing.assert_allclose(
    nats_per_dimension(uniform), math.log(2), rtol=1e-6
  )
  # The entropy of a normal of unit variance.
  normal = known(np.full(1, -2 * math.log(2 * math.pi * math.e)))
  np.testing.assert_allclose(bits_per_dimension(normal), 2.0471, atol=1e-4)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: rademacher(jax.random.key(2), np.zeros(3), 0),
      "probes = 0: must be at least 1",
    ),
    (
      lambda: bits_per_dimension(known(np.zeros(1)), 0),
      "scale = 0: must be positive",
    ),
  ],
)
def test_invalid_numbers_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
