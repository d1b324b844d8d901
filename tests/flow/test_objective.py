"""Objectives: their errors, their optimum, and what they do at the ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import path as paths
from lumina_jax.flow.objective import EPS, STEADY, WEIGHTS, Objective

ALL = [
  Objective(*words)
  for words in itertools.product(paths.PATHS, paths.PREDICTIONS, WEIGHTS)
]
every = pytest.mark.parametrize(
  "objective", ALL, ids=lambda o: f"{o.path}-{o.prediction}-{o.weight}"
)
INNER = np.linspace(EPS, 1 - EPS, 7, dtype=np.float32)[:, None]
MEAN, STD = 0.7, 0.4  # Of the data, where they are Gaussian.


def some(count=11):
  shape = (3, len(INNER), count)
  return np.random.default_rng(0).standard_normal(shape, np.float32)


@every
def test_times_stay_where_nothing_is_singular(objective):
  t = np.linspace(0, 1, 101, dtype=np.float32)
  found = np.asarray(objective.within(t))
  regular = objective.path != "vp" and objective.prediction == "velocity"
  if regular and objective.weight != "likelihood":
    assert objective.within(t) is t
    return
  assert found.min() >= EPS and found.max() <= 1 - EPS
  np.testing.assert_allclose(found, t, atol=1.01 * EPS)


@every
def test_errors_and_their_gradients_are_finite(objective):
  out, x0, x1 = some()
  t = np.linspace(0, 1, len(INNER), dtype=np.float32)[:, None]

  def loss(out):
    return jnp.mean(objective.error(out, x0, x1, t) ** 2)

  value, grad = jax.value_and_grad(loss)(out)
  assert np.isfinite(value) and np.isfinite(grad).all()


def by_hand(objective, out, x0, x1, t):
  """The squared errors as the original writes them."""
  on = paths.named(objective.path)
  sigma = np.asarray(on.sigma(t))
  weight = {
    "none": 1.0,
    "velocity": (paths.drift_variance(t, on) / sigma) ** 2,
    "likelihood": paths.drift_variance(t, on) / sigma**2,
  }[objective.weight]
  own = out - x0 if objective.prediction == "noise" else out * sigma + x0
  return weight * own**2


@pytest.mark.parametrize(
  "objective", [o for o in ALL if o.prediction in ("noise", "score")]
)
def test_noise_and_score_have_the_losses_of_the_original(objective):
  out, x0, x1 = some()
  np.testing.assert_allclose(
    objective.error(out, x0, x1, INNER) ** 2,
    by_hand(objective, out, x0, x1, INNER),
    rtol=1e-4,
  )


@every
def test_weights_are_of_the_noise_that_a_prediction_implies(objective):
  """For "none" they are of the prediction itself."""
  out, x0, x1 = (x.astype(np.float64) for x in some())
  with jax.enable_x64(True):
    t, on = INNER.astype(np.float64), objective.of
    x = objective.interpolate(x0, x1, t)
    error = objective.error(out, x0, x1, t)
    noise = paths.convert(out, x, t, objective.prediction, "noise", on)
    g, sigma = paths.drift_variance(t, on), on.sigma(t)
    expected = {
      "none": objective._own_error(out, x0, x1, t),
      "velocity": g / sigma * (noise - x0),
      "likelihood": np.sqrt(g) / sigma * (noise - x0),
    }[objective.weight]
    np.testing.assert_allclose(np.abs(error), np.abs(expected), rtol=1e-6)


@pytest.mark.parametrize(
  "objective", [o for o in ALL if o.weight == "velocity"]
)
def test_weight_velocity_is_the_error_of_the_velocity(objective):
  out, x0, x1 = (x.astype(np.float64) for x in some())
  with jax.enable_x64(True):
    t = np.linspace(0.06, 0.94, len(INNER))[:, None]
    x = objective.interpolate(x0, x1, t)
    error = objective.velocity(out, x, t) - paths.velocity(
      x0, x1, t, objective.of
    )
    found = objective.error(out, x0, x1, t)
    np.testing.assert_allclose(np.abs(found), np.abs(error), rtol=1e-6)


@pytest.mark.parametrize("on", paths.PATHS)
@pytest.mark.parametrize("prediction", ["noise", "score", "data"])
def test_an_error_carries_x_off_by_a_bounded_speed(on, prediction):
  objective = Objective(on, prediction)
  x, t = np.float32(0.3), np.linspace(0, 1, 101, dtype=np.float32)

  def slopes(velocity, *words):
    of_one = jax.grad(lambda out, t: velocity(out, x, t, *words))
    return jax.vmap(of_one)(np.zeros_like(t), t)

  speed = np.abs(slopes(objective.velocity))
  on = objective.of
  direct = np.abs(on.d_alpha(t) if prediction == "data" else on.d_sigma(t))
  if prediction == "score":
    direct = direct * on.sigma(t)
  assert np.isfinite(speed).all() and np.all(speed - direct <= 1.001 / STEADY)
  exact = np.abs(slopes(paths.convert, prediction, "velocity", on))
  free = exact - direct < 0.999 / STEADY
  assert free.mean() > 0.9
  np.testing.assert_allclose(speed[free], exact[free], rtol=1e-5)


def optimum(objective, x, t):
  """What a network should predict at x_t of Gaussian data."""
  on = objective.of
  alpha, sigma = on.alpha(t), on.sigma(t)
  slope = 1 / (alpha**2 * STD**2 + sigma**2)
  noise = sigma * slope * (x - alpha * MEAN)
  return paths.convert(noise, x, t, "noise", objective.prediction, on)


def gaussian_velocity(on, x, t):
  """From how the mean and the spread of x_t move, not from any prediction."""
  spread = lambda t: jnp.sqrt((on.alpha(t) * STD) ** 2 + on.sigma(t) ** 2)  # noqa: E731
  relative = jax.vmap(jax.grad(lambda t: jnp.log(spread(t))))(t[:, 0])[:, None]
  return on.d_alpha(t) * MEAN + relative * (x - on.alpha(t) * MEAN)


@every
def test_every_objective_has_the_velocity_of_the_data_as_its_optimum(objective):
  """Loss over (x0, x1) by quadrature: no perturbed prediction has less."""
  with jax.enable_x64(True):
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.prod(np.meshgrid(weights, weights), axis=0).ravel() / (2 * np.pi)
    t = np.linspace(0.06, 0.94, 5)[:, None]
    x0, x1 = grid[:, 0], MEAN + STD * grid[:, 1]
    x = objective.interpolate(x0, x1, t)
    best = optimum(objective, x, t)

    def loss(a, b, c):
      out = best + a + b * x + c * x**2
      return objective.error(out, x0, x1, t) ** 2 @ mass

    zero = jnp.zeros(3)
    slopes = jax.jacobian(lambda p: loss(*p))(zero)
    curve = jax.vmap(jnp.linalg.eigvalsh)(jax.hessian(lambda p: loss(*p))(zero))
    size = np.abs(curve).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(slopes / size, 0, atol=1e-9)
    assert np.all(curve > 0)
    np.testing.assert_allclose(
      objective.velocity(best, x, t),
      gaussian_velocity(objective.of, x, t),
      rtol=1e-7,
      atol=1e-7,
    )


def fitted(objective):
  """Least squares of out = sum_ij c_ij t^i x^j on draws, as a velocity."""
  rng = np.random.default_rng(1)
  x0 = rng.standard_normal(20_000)
  x1 = MEAN + STD * rng.standard_normal(20_000)
  t = rng.uniform(0.2, 0.8, 20_000)
  x = np.asarray(objective.interpolate(x0, x1, t))
  features = lambda x, t: np.stack(  # noqa: E731
    [t**i * x**j for i in range(6) for j in range(2)], axis=-1
  )
  # The error is affine in the prediction, so that two of them tell all of it.
  offset = np.asarray(objective.error(np.zeros_like(x), x0, x1, t))
  slope = np.asarray(objective.error(np.ones_like(x), x0, x1, t)) - offset
  coefficients, *_ = np.linalg.lstsq(
    slope[:, None] * features(x, t), -offset, rcond=None
  )
  return lambda x, t: objective.velocity(features(x, t) @ coefficients, x, t)


@pytest.mark.parametrize("on", paths.PATHS)
def test_fitted_networks_follow_one_velocity(on):
  """Whatever they were fitted to predict, and with whichever weights."""
  with jax.enable_x64(True):
    t = np.linspace(0.25, 0.75, 5)[:, None] + np.zeros(7)
    x = np.linspace(-1.5, 1.5, 7) + np.zeros_like(t)
    exact = gaussian_velocity(paths.named(on), x, t[:, :1])
    scale = np.abs(exact).max()
    for objective in ALL:
      if objective.path == on:
        found = fitted(objective)(x, t)
        np.testing.assert_allclose(found, exact, atol=0.1 * scale)


def test_the_default_is_that_of_published_networks():
  assert Objective().published
  assert Objective(weight="likelihood").published
  assert not Objective(prediction="noise").published
  assert not Objective(path="gvp").published
  assert Objective() == Objective("linear", "velocity", "none")


def test_the_default_is_the_plain_difference():
  out, x0, x1 = some()
  for weight in ("none", "velocity"):
    found = Objective(weight=weight).error(out, x0, x1, INNER)
    np.testing.assert_array_equal(found, out - (x1 - x0))


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (dict(path="gpv"), r"unknown path 'gpv'; did you mean 'gvp'"),
    (dict(prediction="nois"), r"prediction 'nois'; did you mean 'noise'"),
    (dict(weight="likelyhood"), r"weight .*; did you mean 'likelihood'"),
    (dict(weight=None), r"weight None; did you mean 'none'\?"),
    (dict(weight="x"), r"weight 'x'; use one of: none, velocity, likelihood"),
  ],
)
def test_unknown_names_are_refused(words, message):
  with pytest.raises(ValueError, match=message):
    Objective(**words)
