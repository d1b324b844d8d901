"""Paths: their ends, derivatives, conversions, and the original's values."""

import functools
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

WAYS = [(a, b) for a in PREDICTIONS for b in PREDICTIONS]

every_path = pytest.mark.parametrize("on", PATHS.values(), ids=PATHS)


@functools.partial(jax.jit, static_argnums=0)
def conversions(on, values, x, t):
  """Converts the value of each quantity into each other quantity."""
  return {
    (source, target): path.convert(values[source], x, t, source, target, on)
    for source, target in WAYS
  }


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def golden():
  return load_file(GOLDEN)


def pair(shape=(3, 4)):
  """Noise and data."""
  return np.random.default_rng(0).standard_normal((2, *shape), np.float32)


@every_path
def test_the_path_runs_from_noise_to_data(on):
  x0, x1 = pair()
  start = path.interpolate(x0, x1, 0.0, on)
  far = 0.007 if on is VP else 0  # VP keeps a trace of the data.
  np.testing.assert_allclose(start, x0, atol=3 * far, rtol=far)
  np.testing.assert_array_equal(path.interpolate(x0, x1, 1.0, on), x1)
  assert on.alpha(1.0) == 1 and on.sigma(1.0) == 0
  assert 0 <= on.alpha(0.0) <= far and 1 - far <= on.sigma(0.0) <= 1


@every_path
def test_derivatives_are_those_of_the_path(on, x64):
  for function, derivative in (
    (on.alpha, on.d_alpha),
    (on.sigma, on.d_sigma),
  ):
    slopes = jax.jit(jax.vmap(jax.grad(function)))(INNER)
    np.testing.assert_allclose(slopes, derivative(INNER), rtol=1e-9)


@every_path
def test_velocity_is_the_derivative_of_the_path(on):
  x0, x1 = pair()

  @jax.jit
  def slope(t):
    return jax.jvp(lambda t: path.interpolate(x0, x1, t, on), (t,), (1.0,))[1]

  for t in (0.01, 0.3, 0.99):
    expected = path.velocity(x0, x1, t, on)
    np.testing.assert_allclose(slope(t), expected, rtol=1e-4)


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
def test_there_and_back_is_the_identity(on, x64):
  t = np.array([1e-3, *INNER, 1 - 1e-3])[:, None]
  value, x = np.random.default_rng(0).standard_normal((2, len(t), 4))

  @jax.jit
  def round_trips(value, x, t):
    there = conversions(on, dict.fromkeys(PREDICTIONS, value), x, t)
    return {way: path.convert(there[way], x, t, *way[::-1], on) for way in WAYS}

  for way, back in round_trips(value, x, t).items():
    np.testing.assert_allclose(
      back, value, rtol=1e-7, atol=1e-7, err_msg=str(way)
    )


@every_path
def test_float32_keeps_four_digits(on):
  value, x = np.random.default_rng(0).standard_normal((2, 3, 1, 4), np.float32)
  t = np.array([1e-3, 0.5, 1 - 1e-3], np.float32).reshape(3, 1, 1)
  inputs = dict.fromkeys(PREDICTIONS, value), x, t
  narrow = jax.device_get(conversions(on, *inputs))
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: x.astype(np.float64), inputs)
    wide = jax.device_get(conversions(on, *wide))
  for way, exact in wide.items():
    found, scale = narrow[way], np.abs(exact).max(axis=(1, 2), keepdims=True)
    assert found.dtype == np.float32 and exact.dtype == np.float64
    np.testing.assert_allclose(
      found / scale, exact / scale, atol=1e-4, err_msg=str(way)
    )


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
    for (_, target), found in conversions(on, known, x, t).items():
      scale = np.abs(known[target]).max()
      np.testing.assert_allclose(found, known[target], atol=2e-4 * scale)


@every_path
def test_ends_and_their_gradients_are_finite(on):
  t = np.array([0.0, 1e-6, 1 - 1e-6, 1.0, 1 + 1e-7], np.float32)[:, None]
  value, x = pair((5, 4))
  ways = [(source, target) for source, target in WAYS if source != target]

  @jax.jit
  def gradients(value, x, t):
    return [
      jax.value_and_grad(
        lambda value, x, t, way=way: path.convert(value, x, t, *way, on).sum(),
        argnums=(0, 1, 2),
      )(value, x, t)
      for way in ways
    ]

  for way, found in zip(ways, gradients(value, x, t), strict=True):
    finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]
    assert all(finite), way


@every_path
def test_drift_is_finite_at_the_ends(on):
  x, _ = pair()

  @jax.jit
  def slopes(t):
    return [
      jax.value_and_grad(lambda t: path.drift(x, t, on).sum())(t),
      jax.value_and_grad(lambda t: path.drift_variance(t, on))(t),
    ]

  for t in (0.0, 1.0):
    drift, variance = slopes(t)
    assert np.isfinite([*drift, *variance]).all() and variance[0] >= 0


@every_path
def test_conversions_hold_for_gaussian_data(on, x64):
  """Data N(mean, std^2): everything is known in closed form."""
  mean, std = 0.7, 0.4
  x = np.linspace(-3, 3, 13)
  spread = jax.jit(
    jax.grad(lambda t: jnp.sqrt(on.alpha(t) ** 2 * std**2 + on.sigma(t) ** 2))
  )
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
    for (_, target), found in conversions(on, known, x, t).items():
      np.testing.assert_allclose(found, known[target], rtol=1e-8, atol=1e-8)
    # The flow carries the mean and the spread of x_t along with it.
    relative = spread(t) / np.sqrt(marginal)
    flow = on.d_alpha(t) * mean + relative * (x - alpha * mean)
    np.testing.assert_allclose(known["velocity"], flow, rtol=1e-8, atol=1e-8)


def test_a_score_at_the_data_implies_the_velocity_there():
  """E[x0 | x1] = 0 whatever the score, without a division."""
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
  ("source", "target"),
  [("velocity", "score"), ("velocity", "noise"), ("score", "velocity")],
)
def test_the_original_converts_the_same_way(on, source, target, golden):
  x, value = golden[f"{on.name}_xt"], golden["model_output"]
  found = path.convert(value, x, times(golden), source, target, on)
  near(found, golden[f"{on.name}_{target}_from_{source}"])


def times(golden):
  return golden["t"].reshape(-1, 1, 1, 1)


def near(found, expected):
  """1e-5, of the largest value of a sample where that exceeds 1."""
  scale = np.maximum(np.abs(expected).max(axis=(1, 2, 3), keepdims=True), 1)
  np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_paths_have_names():
  assert [path.get_path(on.name) for on in (LINEAR, GVP, VP)] == [
    LINEAR,
    GVP,
    VP,
  ]
  assert len({LINEAR, GVP, VP}) == 3


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: path.get_path("liner"), r"path 'liner'; did you mean 'linear'"),
    (lambda: path.get_path("x"), r"path 'x'; use one of: linear, gvp, vp$"),
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
