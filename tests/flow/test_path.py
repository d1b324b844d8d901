"""Paths: their ends, derivatives, conversions, and the original's values."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import path
from lumina_jax.flow.path import GVP, LINEAR, PATHS, PREDICTIONS, VP

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
INNER = np.linspace(0.01, 0.99, 9)

every_path = pytest.mark.parametrize("on", PATHS.values(), ids=PATHS)
each_way = pytest.mark.parametrize(
  ("given", "wanted"), [(a, b) for a in PREDICTIONS for b in PREDICTIONS]
)


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def golden():
  return load_file(GOLDEN)


def pair(shape=(3, 4)):
  noise, data = jax.random.normal(jax.random.key(0), (2, *shape))
  return noise, data


@every_path
def test_the_path_runs_from_noise_to_data(on):
  x0, x1 = pair()
  start = path.interpolate(x0, x1, 0.0, on)
  far = 0.007 if on is VP else 0  # VP never leaves the data altogether.
  np.testing.assert_allclose(start, x0, atol=3 * far, rtol=far)
  np.testing.assert_array_equal(path.interpolate(x0, x1, 1.0, on), x1)
  assert on.alpha(1.0) == 1 and on.sigma(1.0) == 0
  assert 0 <= on.alpha(0.0) <= far and 1 - far <= on.sigma(0.0) <= 1


@every_path
def test_derivatives_are_those_of_the_path(on, double):
  for t in INNER:
    np.testing.assert_allclose(jax.grad(on.alpha)(t), on.d_alpha(t), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(on.sigma)(t), on.d_sigma(t), rtol=1e-9)


@every_path
@pytest.mark.parametrize("t", [0.01, 0.3, 0.99])
def test_velocity_is_the_derivative_of_the_path(on, t):
  x0, x1 = pair()
  _, slope = jax.jvp(lambda t: path.interpolate(x0, x1, t, on), (t,), (1.0,))
  np.testing.assert_allclose(slope, path.velocity(x0, x1, t, on), rtol=1e-4)


@every_path
def test_alpha_rises_and_sigma_falls(on):
  t = np.linspace(0, 1, 1001, dtype=np.float32)
  assert np.all(np.diff(on.alpha(t)) > 0) and np.all(np.diff(on.sigma(t)) <= 0)
  assert np.all(on.wronskian(t) > 0)


def test_times_broadcast_over_a_sample():
  x0, x1 = pair()
  times = jnp.array([[0.1], [0.5], [0.9]])
  found = path.interpolate(x0, x1, times)
  each = [path.interpolate(x0[i], x1[i], times[i]) for i in range(3)]
  np.testing.assert_array_equal(found, each)


def test_the_linear_velocity_is_the_plain_difference():
  x0, x1 = pair()
  np.testing.assert_array_equal(path.velocity(x0, x1, 0.3), x1 - x0)


@every_path
@each_way
def test_there_and_back_is_the_identity(on, given, wanted, double):
  t = np.array([1e-3, *INNER, 1 - 1e-3])[:, None]
  value, x = np.random.default_rng(0).standard_normal((2, len(t), 4))
  there = path.convert(value, x, t, given, wanted, on)
  back = path.convert(there, x, t, wanted, given, on)
  np.testing.assert_allclose(back, value, rtol=1e-7, atol=1e-7)


@every_path
@each_way
def test_float32_keeps_four_digits(on, given, wanted):
  value, x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
  for t in (np.float32(1e-3), np.float32(0.5), np.float32(1 - 1e-3)):
    found = path.convert(value, x, t, given, wanted, on)
    assert found.dtype == np.float32
    with jax.enable_x64(True):
      wide = (x.astype(np.float64) for x in (value, x, t))
      exact = np.asarray(path.convert(*wide, given, wanted, on))
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())


@every_path
def test_quantities_of_known_ends(on):
  x0, x1 = pair()
  for t in INNER:
    x, sigma = path.interpolate(x0, x1, t, on), on.sigma(t)
    known = dict(
      velocity=path.velocity(x0, x1, t, on),
      score=-x0 / sigma,
      noise=x0,
      data=x1,
    )
    for given, value in known.items():
      for wanted, expected in known.items():
        found = path.convert(value, x, t, given, wanted, on)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=2e-4 * scale)


@every_path
@each_way
def test_ends_are_finite_and_their_gradients(on, given, wanted):
  t = jnp.array([0.0, 1e-6, 1 - 1e-6, 1.0, 1 + 1e-7])[:, None]
  value, x = pair((5, 4))

  def total(value, x, t):
    return path.convert(value, x, t, given, wanted, on).sum()

  found = jax.value_and_grad(total, argnums=(0, 1, 2))(value, x, t)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@every_path
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_drift_is_finite_at_the_ends(on, t):
  x, _ = pair()
  drift, slope = jax.value_and_grad(lambda t: path.drift(x, t, on).sum())(t)
  var, bend = jax.value_and_grad(lambda t: path.drift_variance(t, on))(t)
  assert np.isfinite([drift, slope, var, bend]).all() and var >= 0


@every_path
def test_a_gaussian_has_the_velocity_score_and_ends_that_it_must(on, double):
  """Data N(mean, std^2): everything is known in closed form."""
  mean, std = 0.7, 0.4
  x = np.linspace(-3, 3, 13)
  for t in INNER:
    alpha, sigma = on.alpha(t), on.sigma(t)
    marginal = alpha**2 * std**2 + sigma**2
    away = (x - alpha * mean) / marginal
    data, noise = mean + alpha * std**2 * away, sigma * away
    known = dict(
      velocity=on.d_alpha(t) * data + on.d_sigma(t) * noise,
      score=-away,
      noise=noise,
      data=data,
    )
    for given, value in known.items():
      for wanted, expected in known.items():
        found = path.convert(value, x, t, given, wanted, on)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    # The flow carries the mean and the spread of x_t along with it.
    spread = jax.grad(
      lambda t: jnp.sqrt(on.alpha(t) ** 2 * std**2 + on.sigma(t) ** 2)
    )(t) / np.sqrt(marginal)
    flow = on.d_alpha(t) * mean + spread * (x - alpha * mean)
    np.testing.assert_allclose(known["velocity"], flow, rtol=1e-8, atol=1e-8)


def test_a_score_at_the_data_implies_the_velocity_there():
  """E[x0 | x1] = 0 whatever the score: nothing is divided by."""
  score, x1 = pair()
  found = path.convert(score, x1, 1.0, "score", "velocity")
  np.testing.assert_array_equal(found, x1)


@every_path
def test_the_original_has_the_same_path(on, golden):
  x0, x1, t = golden["x0"], golden["x1"], times(golden)
  near(path.interpolate(x0, x1, t, on), golden[f"{on.name}_xt"])
  near(path.velocity(x0, x1, t, on), golden[f"{on.name}_ut"])


@every_path
def test_the_original_has_the_same_drift(on, golden):
  x, t = golden[f"{on.name}_xt"], times(golden)
  near(path.drift(x, t, on), golden[f"{on.name}_sde_drift"])
  variance = np.broadcast_to(path.drift_variance(t, on), x.shape)
  near(variance, golden[f"{on.name}_drift_var"])


@every_path
@pytest.mark.parametrize(
  ("given", "wanted"),
  [("velocity", "score"), ("velocity", "noise"), ("score", "velocity")],
)
def test_the_original_converts_the_same_way(on, given, wanted, golden):
  x, value = golden[f"{on.name}_xt"], golden["model_output"]
  found = path.convert(value, x, times(golden), given, wanted, on)
  near(found, golden[f"{on.name}_{wanted}_from_{given}"])


def times(golden):
  return golden["t"].reshape(-1, 1, 1, 1)


def near(found, expected):
  """1e-5, of the largest value of a sample where that exceeds 1."""
  scale = np.maximum(np.abs(expected).max(axis=(1, 2, 3), keepdims=True), 1)
  np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_paths_have_names():
  assert [path.named(on.name) for on in (LINEAR, GVP, VP)] == [LINEAR, GVP, VP]
  assert len({LINEAR, GVP, VP}) == 3


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: path.named("liner"), r"path 'liner'; did you mean 'linear'"),
    (lambda: path.named("x"), r"path 'x'; use one of: linear, gvp, vp$"),
    (
      lambda: path.convert(0.0, 0.0, 0.5, "nose", "noise"),
      r"prediction 'nose'; did you mean 'noise'",
    ),
    (
      lambda: path.convert(0.0, 0.0, 0.5, "noise", "scores"),
      r"prediction 'scores'; did you mean 'score'",
    ),
  ],
)
def test_unknown_names_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
