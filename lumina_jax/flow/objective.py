"""What a network learns: the path, what it predicts there, and the weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lumina_jax.files.suggest import check_name
from lumina_jax.flow import path as paths
from lumina_jax.flow.path import Path, Time

WEIGHTS = ("none", "velocity", "likelihood")

# How far training keeps from an end of time where something is singular.
EPS = 1e-3

# The velocity that noise implies goes through the data, (x - sigma x0) / alpha.
# At t = 0 an error of the noise would count without bound there, and a solver's
# step carries x off by that times its length; so it counts at most 1 / STEADY
# times, about the steps of a solve. Likewise an error of data at t = 1. While
# this holds, on the linear path for the first or the last STEADY of time, exact
# predictions are followed with too little of the other end.
STEADY = 0.05


@dataclasses.dataclass(frozen=True)
class Objective:
  """A regression on x_t, and the velocity that its solution implies.

  Whatever is predicted, sampling follows a velocity; every objective has the
  same one as its optimum, and they differ in which errors they mind (SiT, arXiv
  2401.08740, section 3). All published Lumina networks are the default.

  Attributes:
    path: a name of `path.PATHS`: "linear", "gvp" or "vp".
    prediction: one of `path.PREDICTIONS`; what the backbone gives.
    weight: of the squared error, by time. "none": 1, with the errors out - u of
      a velocity, out - x0 of noise, sigma out + x0 of a score (so that it does
      not grow as sigma falls) and out - x1 of data. The others weigh the error
      of the noise that the prediction implies, so that they mean the same for
      all: "velocity" by (g / sigma)^2, which makes it the error of the velocity
      (and "none" of a velocity prediction), "likelihood" by g / sigma^2, a
      bound on the likelihood of the data (Song et al. 2021b, section 4), with g
      the `path.drift_variance`. For noise and score they are the original's.

  Raises:
    ValueError: for an unknown name; near ones are suggested.
  """

  path: str = "linear"
  prediction: str = "velocity"
  weight: str = "none"

  def __post_init__(self):
    paths.named(self.path)
    check_name("prediction", self.prediction, paths.PREDICTIONS)
    check_name("weight", self.weight, WEIGHTS)

  @property
  def of(self) -> Path:
    """The path itself."""
    return paths.named(self.path)

  @property
  def published(self) -> bool:
    """Whether a program that knows the published networks only can sample.

    They predict the velocity of the linear path; weights are of no matter then.
    """
    return (self.path, self.prediction) == ("linear", "velocity")

  @property
  def summary(self) -> str:
    """The network's task in a few words, for messages."""
    return f"prediction {self.prediction!r} on the path {self.path!r}"

  @property
  def eps(self) -> float:
    """How far from 0 and 1 training times stay.

    0 where everything is regular up to the ends: a velocity on the linear or
    the gvp path (the original's train_eps; for a velocity on vp it has 1e-5).
    """
    regular = (
      self.path != "vp"
      and self.prediction == "velocity"
      and self.weight != "likelihood"
    )
    return 0.0 if regular else EPS

  def within(self, t: jax.Array) -> jax.Array:
    """Times `f32[...]` of [0, 1], drawn together into [eps, 1 - eps]."""
    return self.eps + (1 - 2 * self.eps) * t if self.eps else t

  def interpolate(self, x0: jax.Array, x1: jax.Array, t: Time) -> jax.Array:
    """x_t between noise x0 and data x1, `f32[...]`."""
    return paths.interpolate(x0, x1, t, self.of)

  def velocity(self, out: jax.Array, x: jax.Array, t: Time) -> jax.Array:
    """The velocity to follow at x_t, from a prediction, all `f32[...]`.

    It is what the prediction implies, but near an end an error of noise or data
    enters at most 1 / `STEADY` times through the other.
    """
    if self.prediction == "data":
      through = -self.of.d_sigma(t) * self.of.alpha(t)
    else:
      through = self.of.d_alpha(t) * self.of.sigma(t)
    floor = STEADY * through
    return paths.convert(out, x, t, self.prediction, "velocity", self.of, floor)

  def error(
    self, out: jax.Array, x0: jax.Array, x1: jax.Array, t: Time
  ) -> jax.Array:
    """Weighted error `f32[...]` of a prediction; its square is the loss.

    Args:
      out: `f32[...]`, what is predicted at x_t.
      x0: noise of the same shape.
      x1: data of the same shape.
      t: times that broadcast against it; at 0 and 1 it is finite too.
    """
    error = self._own_error(out, x0, x1, t)
    if self.weight == "none":
      return error
    if self.prediction != "velocity":
      error = self._speed(t) * error
    if self.weight == "likelihood":
      variance = paths.drift_variance(t, self.of)
      error = error / jnp.sqrt(jnp.maximum(variance, paths.FLOOR))
    return error

  def _own_error(
    self, out: jax.Array, x0: jax.Array, x1: jax.Array, t: Time
  ) -> jax.Array:
    match self.prediction:
      case "velocity":
        return out - paths.velocity(x0, x1, t, self.of)
      case "noise":
        return out - x0
      case "score":
        return self.of.sigma(t) * out + x0
      case _:
        return out - x1

  def _speed(self, t: Time) -> jax.Array:
    """Error of the velocity for an error of 1 of noise or data, up to sign.

    With x_t given, an error e of x0 is one of -(sigma / alpha) e of x1; so the
    velocity alpha' x1 + sigma' x0 is wrong by the Wronskian over alpha, which
    is g / sigma. For e of x1 it is the Wronskian over sigma.
    """
    of = self.of
    held = of.sigma(t) if self.prediction == "data" else of.alpha(t)
    return of.wronskian(t) / jnp.maximum(held, paths.FLOOR)


PLAIN = Objective()
