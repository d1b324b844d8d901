"""Probability paths from noise to data, and predictions on them.

x_t = alpha(t) x1 + sigma(t) x0, where time runs from t = 0 (noise x0) to t = 1
(data x1), everywhere in this package.

A prediction and x_t are two linear equations for the endpoints x0 and x1, and
every other quantity follows from the endpoints:

  velocity = alpha' x1 + sigma' x0      score = -x0 / sigma
  noise = x0                            data = x1

A trained network predicts expectations given x_t. The equations are linear, so
they hold between expectations too (SiT, arXiv 2401.08740, section 2).

Times t are numbers or arrays that broadcast against x.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumina_jax.files.suggest import check_name

Time = jax.Array | float

PREDICTIONS = ("velocity", "score", "noise", "data")

# Least alpha or sigma to divide by. Each is 0 at one end of time, where only
# the floor keeps quotients finite. It acts in the outermost thousandth of time,
# which training leaves out where it matters (`Objective.eps`). A smaller floor
# would leave float32 fewer than four of its seven digits.
FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class Path:
  """A path x_t = alpha(t) x1 + sigma(t) x0; static, hashable.

  Attributes:
    name: name in `PATHS`.
    alpha: coefficient of the data, 1 at t = 1.
    sigma: coefficient of the noise, 0 at t = 1.
    d_alpha: derivative of alpha.
    d_sigma: derivative of sigma.
  """

  name: str
  alpha: Callable[[Time], jax.Array]
  sigma: Callable[[Time], jax.Array]
  d_alpha: Callable[[Time], jax.Array]
  d_sigma: Callable[[Time], jax.Array]

  def wronskian(self, t: Time) -> jax.Array:
    """alpha' sigma - alpha sigma', positive at every time."""
    return self.d_alpha(t) * self.sigma(t) - self.alpha(t) * self.d_sigma(t)


def _floored(x: jax.Array, floor: Time = FLOOR) -> jax.Array:
  return jnp.maximum(x, floor)


LINEAR = Path(
  "linear",
  alpha=lambda t: t,
  sigma=lambda t: 1 - t,
  d_alpha=lambda t: jnp.ones_like(t),
  d_sigma=lambda t: -jnp.ones_like(t),
)


def _quarter_turn(t: Time) -> jax.Array:
  return jnp.sin(math.pi / 2 * t)


# sigma = cos(pi t / 2) as a sine: the cosine of float32's pi / 2 is not 0.
GVP = Path(
  "gvp",
  alpha=_quarter_turn,
  sigma=lambda t: _quarter_turn(1 - t),
  d_alpha=lambda t: math.pi / 2 * _quarter_turn(1 - t),
  d_sigma=lambda t: -math.pi / 2 * _quarter_turn(t),
)

# The noise rate beta of VP, at t = 1 and at t = 0.
BETA_DATA, BETA_NOISE = 0.1, 20.0


def _vp_log_alpha(t: Time) -> jax.Array:
  noised = 1 - t
  grown = (BETA_NOISE - BETA_DATA) * noised**2 / 4
  return -(grown + BETA_DATA * noised / 2)


def _vp_alpha(t: Time) -> jax.Array:
  return jnp.exp(_vp_log_alpha(t))


def _vp_sigma(t: Time) -> jax.Array:
  variance = -jnp.expm1(2 * _vp_log_alpha(t))  # 1 - alpha^2, exact near data.
  # The root has an infinite slope at 0, so no branch of `where` may reach it.
  noisy = variance > 0
  return jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1)), 0)


def _vp_d_alpha(t: Time) -> jax.Array:
  beta = BETA_DATA + (BETA_NOISE - BETA_DATA) * (1 - t)
  return beta / 2 * _vp_alpha(t)


def _vp_d_sigma(t: Time) -> jax.Array:
  return -_vp_alpha(t) * _vp_d_alpha(t) / _floored(_vp_sigma(t))


VP = Path("vp", _vp_alpha, _vp_sigma, _vp_d_alpha, _vp_d_sigma)

PATHS = {path.name: path for path in (LINEAR, GVP, VP)}


def get_path(name: str) -> Path:
  """The path of that name: "linear", "gvp" or "vp".

  Linear: t and 1 - t (Lumina-T2X, section 2.1). Gvp: sin(pi t / 2) and
  cos(pi t / 2). Vp: alpha^2 + sigma^2 = 1 with alpha = exp(-(beta_noise -
  beta_data) (1 - t)^2 / 4 - beta_data (1 - t) / 2), the variance-preserving
  diffusion of Song et al. 2021; its alpha is 0.0066 at t = 0, not 0.

  Raises:
    ValueError: for an unknown name, with near names.
  """
  check_name("path", name, PATHS)
  return PATHS[name]


def interpolate(
  x0: jax.Array, x1: jax.Array, t: Time, path: Path = LINEAR
) -> jax.Array:
  """x_t = alpha x1 + sigma x0, for linear t x1 + (1 - t) x0."""
  return path.alpha(t) * x1 + path.sigma(t) * x0


def velocity(
  x0: jax.Array, x1: jax.Array, t: Time, path: Path = LINEAR
) -> jax.Array:
  """dx_t / dt = alpha' x1 + sigma' x0, for linear x1 - x0."""
  # Subtracts, so that factors of 1 compile away on the linear path.
  return path.d_alpha(t) * x1 - (-path.d_sigma(t)) * x0


def endpoints(
  value: jax.Array,
  x: jax.Array,
  t: Time,
  prediction: str,
  path: Path = LINEAR,
  floor: Time = FLOOR,
) -> tuple[jax.Array, jax.Array]:
  """Noise x0 and data x1, `f32[...]`, that x_t and a prediction imply.

  Args:
    value: predicted quantity, `f32[...]`.
    x: x_t, `f32[...]`.
    t: times.
    prediction: kind of the predicted quantity, one of `PREDICTIONS`.
    path: path that x lies on.
    floor: least alpha or sigma to divide by, like t.

  Raises:
    ValueError: for an unknown prediction.
  """
  check_name("prediction", prediction, PREDICTIONS)
  alpha, sigma = path.alpha(t), path.sigma(t)
  if prediction == "velocity":
    x0 = path.d_alpha(t) * x - alpha * value
    x1 = sigma * value - path.d_sigma(t) * x
    return x0 / path.wronskian(t), x1 / path.wronskian(t)
  if prediction == "data":
    return (x - alpha * value) / _floored(sigma, floor), value
  x0 = value if prediction == "noise" else -sigma * value
  return x0, (x - sigma * x0) / _floored(alpha, floor)


def convert(
  value: jax.Array,
  x: jax.Array,
  t: Time,
  source: str,
  target: str,
  path: Path = LINEAR,
  floor: Time = FLOOR,
) -> jax.Array:
  """Converts one predicted quantity into another, by way of the endpoints.

  The result is exact while alpha and sigma exceed the floor, and finite at
  t = 0 and 1.

  Args:
    value: quantity to convert, `f32[...]`.
    x: x_t, `f32[...]`.
    t: times.
    source: kind of the value, one of `PREDICTIONS`.
    target: kind of the result, one of `PREDICTIONS`.
    path: path that x lies on.
    floor: least alpha or sigma to divide by, like t.

  Raises:
    ValueError: for an unknown quantity.
  """
  check_name("prediction", target, PREDICTIONS)
  if target == source:
    return value
  x0, x1 = endpoints(value, x, t, source, path, floor)
  if target == "velocity":
    return velocity(x0, x1, t, path)
  if target == "score":
    return -x0 / _floored(path.sigma(t), floor)
  return x0 if target == "noise" else x1


def drift(x: jax.Array, t: Time, path: Path = LINEAR) -> jax.Array:
  """f = -(alpha' / alpha) x, the drift of the diffusion from data to noise.

  In its own time s = 1 - t this diffusion is dx = f ds + sqrt(2 g) dw, with g
  the `drift_variance`; the velocity of x_t is g score - f (SiT, section 2). For
  vp, f = -beta x / 2 and g = beta / 2.
  """
  return -path.d_alpha(t) / _floored(path.alpha(t)) * x


def drift_variance(t: Time, path: Path = LINEAR) -> jax.Array:
  """g = (alpha' / alpha) sigma^2 - sigma sigma' of `drift`, at least 0."""
  return path.sigma(t) * path.wronskian(t) / _floored(path.alpha(t))
