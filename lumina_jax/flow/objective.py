"""Training objectives: a path, a prediction, the weight of its error."""

import dataclasses

import jax
import jax.numpy as jnp

from lumina_jax.files.suggest import check_name
from lumina_jax.flow import path as paths
from lumina_jax.flow.path import Path, Time

WEIGHTS = ("none", "velocity", "likelihood")

# Distance of training times from 0 and 1 where the objective is singular there.
EPS = 1e-3

# The velocity that noise implies contains the data (x - sigma x0) / alpha. Near
# t = 0 this amplifies an error of the noise without bound, and each step of a
# solver moves x by that error times its length. `Objective.velocity` limits the
# amplification to 1 / MIN_STEP, about the number of steps of a solve; likewise
# for an error of data near t = 1. On the linear path the limit acts in the
# first or last MIN_STEP of time, where even exact predictions give a velocity
# with too little of the other end.
MIN_STEP = 0.05


@dataclasses.dataclass(frozen=True)
class Objective:
  """A regression on x_t, and the velocity that its solution implies.

  Sampling follows a velocity, whatever is predicted. All objectives have the
  same velocity as their optimum and differ in how they weigh errors (SiT, arXiv
  2401.08740, section 3). All published Lumina networks use the default.

  Attributes:
    path: a name of `path.PATHS`: "linear", "gvp" or "vp".
    prediction: output of the backbone, one of `path.PREDICTIONS`.
    weight: weight of the squared error by time. "none" is 1, with the errors
      out - u for a velocity, out - x0 for noise, sigma out + x0 for a score (so
      that it does not grow as sigma falls) and out - x1 for data. The others
      weigh the error of the noise that the prediction implies, so they mean the
      same for all predictions: "velocity" by (g / sigma)^2, which makes it the
      error of the velocity (equal to "none" for a velocity prediction), and
      "likelihood" by g / sigma^2, a bound on the likelihood of the data (Song
      et al. 2021b, section 4), with g the `path.drift_variance`. For noise and
      score they equal Lumina-T2X's.

  Raises:
    ValueError: for an unknown name, with near names.
  """

  path: str = "linear"
  prediction: str = "velocity"
  weight: str = "none"

  def __post_init__(self):
    paths.get_path(self.path)
    check_name("prediction", self.prediction, paths.PREDICTIONS)
    check_name("weight", self.weight, WEIGHTS)

  @property
  def probability_path(self) -> Path:
    """The path of that name."""
    return paths.get_path(self.path)

  @property
  def published(self) -> bool:
    """Whether programs for the published networks can sample with it.

    They expect the velocity of the linear path; the weight does not matter.
    """
    return (self.path, self.prediction) == ("linear", "velocity")

  @property
  def summary(self) -> str:
    """The prediction and the path, for messages."""
    return f"prediction {self.prediction!r} on the path {self.path!r}"

  @property
  def eps(self) -> float:
    """Distance of training times from 0 and 1.

    0 where the objective is regular up to the ends: a velocity on the linear or
    the gvp path. (Lumina-T2X's train_eps; for a velocity on vp it has 1e-5.)
    """
    regular = (
      self.path != "vp"
      and self.prediction == "velocity"
      and self.weight != "likelihood"
    )
    return 0.0 if regular else EPS

  def training_times(self, t: jax.Array) -> jax.Array:
    """Rescales times `f32[...]` from [0, 1] to [eps, 1 - eps]."""
    return self.eps + (1 - 2 * self.eps) * t if self.eps else t

  def interpolate(self, x0: jax.Array, x1: jax.Array, t: Time) -> jax.Array:
    """x_t between noise x0 and data x1, `f32[...]`."""
    return paths.interpolate(x0, x1, t, self.probability_path)

  def velocity(self, out: jax.Array, x: jax.Array, t: Time) -> jax.Array:
    """The velocity to follow at x_t, from a prediction, all `f32[...]`.

    It is the velocity that the prediction implies, except near an end of time,
    where it amplifies an error of noise or data at most 1 / `MIN_STEP` times.
    """
    path = self.probability_path
    if self.prediction == "data":
      amplified = -path.d_sigma(t) * path.alpha(t)
    else:
      amplified = path.d_alpha(t) * path.sigma(t)
    floor = MIN_STEP * amplified
    return paths.convert(out, x, t, self.prediction, "velocity", path, floor)

  def error(
    self, out: jax.Array, x0: jax.Array, x1: jax.Array, t: Time
  ) -> jax.Array:
    """Weighted error `f32[...]` of a prediction; its square is the loss.

    Args:
      out: prediction at x_t, `f32[...]`.
      x0: noise of the same shape.
      x1: data of the same shape.
      t: times that broadcast against it. The error is finite at 0 and 1 too.
    """
    error = self.unweighted_error(out, x0, x1, t)
    if self.weight == "none":
      return error
    if self.prediction != "velocity":
      error = self._velocity_error(t) * error
    if self.weight == "likelihood":
      variance = paths.drift_variance(t, self.probability_path)
      error = error / jnp.sqrt(jnp.maximum(variance, paths.FLOOR))
    return error

  def unweighted_error(
    self, out: jax.Array, x0: jax.Array, x1: jax.Array, t: Time
  ) -> jax.Array:
    """The error of weight "none"; arguments as in `error`."""
    path = self.probability_path
    match self.prediction:
      case "velocity":
        return out - paths.velocity(x0, x1, t, path)
      case "noise":
        return out - x0
      case "score":
        return path.sigma(t) * out + x0
      case _:
        return out - x1

  def _velocity_error(self, t: Time) -> jax.Array:
    """Error of the velocity per unit error of noise or data, up to sign.

    At a given x_t, an error e of x0 is an error -(sigma / alpha) e of x1. The
    error of the velocity alpha' x1 + sigma' x0 is then e times the Wronskian
    over alpha, which is g / sigma. For an error of x1 it is the Wronskian over
    sigma.
    """
    path = self.probability_path
    other = path.sigma(t) if self.prediction == "data" else path.alpha(t)
    return path.wronskian(t) / jnp.maximum(other, paths.FLOOR)


PLAIN = Objective()
