"""Objectives: their errors, their optimum, their behaviour at the ends."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import path as paths
from lumina_jax.flow.objective import EPS, MIN_STEP, WEIGHTS, Objective

ALL = [
  Objective(*names)
  for names in itertools.product(paths.PATHS, paths.PREDICTIONS, WEIGHTS)
]
every = pytest.mark.parametrize(
  "objective", ALL, ids=lambda o: f"{o.path}-{o.prediction}-{o.weight}"
)
INNER = np.linspace(EPS, 1 - EPS, 7, dtype=np.float32)[:, None]
MEAN, STD = 0.7, 0.4  # Of the data, where they are Gaussian.


def values(count=11):
  """A prediction, noise and data."""
  shape = (3, len(INNER), count)
  return np.random.default_rng(0).standard_normal(shape, np.float32)


@every
def test_training_times_avoid_singular_ends(objective):
  t = np.linspace(0, 1, 101, dtype=np.float32)
  found = np.asarray(objective.training_times(t))
  regular = objective.path != "vp" and objective.prediction == "velocity"
  if regular and objective.weight != "likelihood":
    assert objective.training_times(t) is t
    return
  assert found.min() >= EPS and found.max() <= 1 - EPS
  np.testing.assert_allclose(found, t, atol=1.01 * EPS)


@every
def test_errors_and_their_gradients_are_finite(objective):
  out, x0, x1 = values()
  t = np.linspace(0, 1, len(INNER), dtype=np.float32)[:, None]

  def loss(out):
    return jnp.mean(objective.error(out, x0, x1, t) ** 2)

  value, grad = jax.value_and_grad(loss)(out)
  assert np.isfinite(value) and np.isfinite(grad).all()


def by_hand(objective, out, x0, x1, t):
  """The squared errors as the original writes them."""
  path = paths.get_path(objective.path)
  sigma = np.asarray(path.sigma(t))
  weight = {
    "none": 1.0,
    "velocity": (paths.drift_variance(t, path) / sigma) ** 2,
    "likelihood": paths.drift_variance(t, path) / sigma**2,
  }[objective.weight]
  own = out - x0 if objective.prediction == "noise" else out * sigma + x0
  return weight * own**2


@pytest.mark.parametrize(
  "objective", [o for o in ALL if o.prediction in ("noise", "score")]
)
def test_noise_and_score_have_the_losses_of_the_original(objective):
  out, x0, x1 = values()
  np.testing.assert_allclose(
    objective.error(out, x0, x1, INNER) ** 2,
    by_hand(objective, out, x0, x1, INNER),
    rtol=1e-4,
  )


@every
def test_weights_apply_to_the_implied_noise(objective):
  """With "none" they apply to the prediction itself."""
  out, x0, x1 = values().astype(np.float64)
  with jax.enable_x64(True):
    t, path = INNER.astype(np.float64), objective.probability_path
    x = objective.interpolate(x0, x1, t)
    error = objective.error(out, x0, x1, t)
    noise = paths.convert(out, x, t, objective.prediction, "noise", path)
    g, sigma = paths.drift_variance(t, path), path.sigma(t)
    expected = {
      "none": objective.unweighted_error(out, x0, x1, t),
      "velocity": g / sigma * (noise - x0),
      "likelihood": np.sqrt(g) / sigma * (noise - x0),
    }[objective.weight]
    np.testing.assert_allclose(np.abs(error), np.abs(expected), rtol=1e-6)


@pytest.mark.parametrize(
  "objective", [o for o in ALL if o.weight == "velocity"]
)
def test_weight_velocity_is_the_error_of_the_velocity(objective):
  out, x0, x1 = values().astype(np.float64)
  with jax.enable_x64(True):
    t = np.linspace(0.06, 0.94, len(INNER))[:, None]
    x = objective.interpolate(x0, x1, t)
    exact = paths.velocity(x0, x1, t, objective.probability_path)
    error = objective.velocity(out, x, t) - exact
    found = objective.error(out, x0, x1, t)
    np.testing.assert_allclose(np.abs(found), np.abs(error), rtol=1e-6)


@pytest.mark.parametrize("name", paths.PATHS)
@pytest.mark.parametrize("prediction", ["noise", "score", "data"])
def test_errors_of_a_prediction_are_amplified_up_to_a_limit(name, prediction):
  objective = Objective(name, prediction)
  path, t = objective.probability_path, np.linspace(0, 1, 101, dtype=np.float32)
  # At x = 0 the velocity is proportional to the prediction.
  one, zero = np.ones_like(t), np.zeros_like(t)
  found = np.abs(objective.velocity(one, zero, t))
  exact = np.abs(paths.convert(one, zero, t, prediction, "velocity", path))
  direct = path.d_alpha(t) if prediction == "data" else path.d_sigma(t)
  direct = np.abs(direct * path.sigma(t) if prediction == "score" else direct)
  assert np.isfinite(found).all()
  assert np.all(found - direct <= 1.001 / MIN_STEP)
  free = exact - direct < 0.999 / MIN_STEP
  assert free.mean() > 0.9
  np.testing.assert_allclose(found[free], exact[free], rtol=1e-5)


def optimum(objective, x, t):
  """The best prediction at x_t of Gaussian data."""
  path = objective.probability_path
  alpha, sigma = path.alpha(t), path.sigma(t)
  slope = 1 / (alpha**2 * STD**2 + sigma**2)
  noise = sigma * slope * (x - alpha * MEAN)
  return paths.convert(noise, x, t, "noise", objective.prediction, path)


@functools.cache
def relative_spread(path):
  """d log std(x_t) / dt of Gaussian data, a function of t."""
  variance = lambda t: (path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2  # noqa: E731
  return jax.jit(jax.vmap(jax.grad(lambda t: jnp.log(variance(t)) / 2)))


def gaussian_velocity(path, x, t):
  """From how mean and spread of x_t move, not from any prediction."""
  relative = relative_spread(path)(t[:, 0])[:, None]
  return path.d_alpha(t) * MEAN + relative * (x - path.alpha(t) * MEAN)


def affine(objective, out, x0, x1, t):
  """The error at a prediction, and its slope with respect to it."""
  errors = [np.asarray(objective.error(out + i, x0, x1, t)) for i in range(3)]
  slope = errors[1] - errors[0]
  np.testing.assert_allclose(errors[2] - errors[1], slope, rtol=1e-6, atol=1e-6)
  return errors[0], slope


@every
def test_every_objective_has_the_velocity_of_the_data_as_its_optimum(objective):
  """Loss over (x0, x1) by quadrature: no perturbed prediction has less."""
  with jax.enable_x64(True):
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.prod(np.meshgrid(weights, weights), axis=0).ravel() / (2 * np.pi)
    t = np.linspace(0.06, 0.94, 5)[:, None]
    x0, x1 = grid[:, 0], MEAN + STD * grid[:, 1]
    x = np.asarray(objective.interpolate(x0, x1, t))
    best = np.asarray(optimum(objective, x, t))
    error, slope = affine(objective, best, x0, x1, t)
    # Gradient and Hessian of the loss of best + a + b x + c x^2.
    change = np.stack([slope, slope * x, slope * x**2])
    gradient = 2 * np.einsum("itn,tn,n->ti", change, error, mass)
    curve = 2 * np.einsum("itn,jtn,n->tij", change, change, mass)
    curve = np.linalg.eigvalsh(curve)
    size = curve.max(axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient / size, 0, atol=1e-9)
    assert np.all(curve > 0)
    np.testing.assert_allclose(
      objective.velocity(best, x, t),
      gaussian_velocity(objective.probability_path, x, t),
      rtol=1e-7,
      atol=1e-7,
    )


def fitted(objective):
  """Least squares of out = sum_ij c_ij t^i x^j on samples, as a velocity."""
  rng = np.random.default_rng(1)
  x0 = rng.standard_normal(5000)
  x1 = MEAN + STD * rng.standard_normal(5000)
  t = rng.uniform(0.2, 0.8, 5000)
  x = np.asarray(objective.interpolate(x0, x1, t))
  features = lambda x, t: np.stack(  # noqa: E731
    [t**i * x**j for i in range(6) for j in range(2)], axis=-1
  )
  offset, slope = affine(objective, np.zeros_like(x), x0, x1, t)
  rows = slope[:, None] * features(x, t)
  coefficients = np.linalg.solve(rows.T @ rows, -rows.T @ offset)
  return lambda x, t: objective.velocity(features(x, t) @ coefficients, x, t)


@pytest.mark.parametrize("name", paths.PATHS)
def test_fitted_networks_follow_one_velocity(name):
  """Whatever they were fitted to predict, and with whichever weights."""
  with jax.enable_x64(True):
    t = np.linspace(0.25, 0.75, 5)[:, None] + np.zeros(7)
    x = np.linspace(-1.5, 1.5, 7) + np.zeros_like(t)
    exact = gaussian_velocity(paths.get_path(name), x, t[:, :1])
    scale = np.abs(exact).max()
    for objective in ALL:
      if objective.path == name:
        found = fitted(objective)(x, t)
        np.testing.assert_allclose(found, exact, atol=0.1 * scale)


def test_the_default_is_that_of_published_networks():
  assert Objective().published
  assert Objective(weight="likelihood").published
  assert not Objective(prediction="noise").published
  assert not Objective(path="gvp").published
  assert Objective() == Objective("linear", "velocity", "none")


def test_the_default_is_the_plain_difference():
  out, x0, x1 = values()
  for weight in ("none", "velocity"):
    found = Objective(weight=weight).error(out, x0, x1, INNER)
    np.testing.assert_array_equal(found, out - (x1 - x0))


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (dict(path="gpv"), r"unknown path 'gpv'; did you mean 'gvp'"),
    (dict(prediction="nois"), r"prediction 'nois'; did you mean 'noise'"),
    (dict(weight="likelyhood"), r"weight .*; did you mean 'likelihood'"),
    (dict(weight=None), r"weight None; did you mean 'none'\?"),
    (dict(weight="x"), r"weight 'x'; use one of: none, velocity, likelihood"),
  ],
)
def test_unknown_names_are_refused(names, message):
  with pytest.raises(ValueError, match=message):
    Objective(**names)
