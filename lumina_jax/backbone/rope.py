"""Rotary position embedding on any number of axes, and rules to stretch it.

A rule gives the rate of each channel pair; beyond the sizes of training it
lowers the rates. The rule is static. Its numbers are data of each sample, so a
new scale, time or factor never recompiles.

B rows, L tokens, N samples a row, H heads, K head channels, A axes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.files.suggest import check_name

Number = jax.Array | float
TINY = 1e-9  # Lower bound of divisors.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How positions are stretched: the name of a rule, and its numbers.

  A rule divides the rate theta^-e of a pair by scale^p, with p from 0 (as
  trained) to 1 (interpolated). For pair k of the D / 2 pairs of an axis, with
  D = K / A, e = 2k / D, time t from 0 (noise) to 1 (data), L trained positions:

  "none": p = 0.
  "linear": p = 1, position interpolation (Chen et al. 2023).
  "ntk": p = 2k / (D - 2), that is theta scale^(D / (D - 2)). It interpolates
    the slowest pair and keeps the fastest (Lumina-Next, section 2.1).
  "ntk_plain": p = e, that is theta scale, as in the original's programs.
  "yarn": keeps pairs that turn more than `beta` times along L, interpolates
    those with fewer than `alpha` turns, and mixes both between in proportion to
    the turns (Peng et al. 2023, section 3.2, NTK by parts). It has no
    temperature of attention; use `Condition.attention_scale`.
  "frequency_aware": p = min(e / log_theta(L / 2 pi), 1). It interpolates the
    pair that turns once along L, and all slower ones (Lumina-Next, 2.1).
  "time_aware": p = min(e K / d, 1) with d = (K - 1) t + 1: from interpolation
    of nearly all pairs to "ntk_plain" (Lumina-Next, section 2.1).
  "watershed": "linear" while t < `watershed`, then "ntk_plain"; the time-aware
    rule of the original's programs.
  "dype_linear", "dype_ntk": p of "linear" and "ntk" times
    kappa = lambda_s (1 - t)^lambda_t: stronger than these at first, at the end
    as trained (DyPE, Issachar et al. 2025, whose time is 1 - t).
  "dype_yarn": "yarn" with `alpha` and `beta` times (1 - t)^lambda_t.

  The papers take the max of two rates where these formulas take the min of two
  powers. For scale >= 1 both are the same; below 1 ours is the mirror image.

  Each number is a scalar, or `f32[B, N]`.

  Attributes:
    rule: a name of `RULES`.
    scale: factor of the positions along an axis over those in training; the
      original's `scale_factor` or `rope_scaling_factor`.
    base_factor: factor of theta, under any rule; the original's `ntk_factor`.
    trained: L, positions along an axis in training, in tokens; required by the
      rules in `NEEDS_TRAINED`.
    watershed: time at which "watershed" changes.
    alpha: turns along L below which "yarn" interpolates.
    beta: turns along L above which "yarn" keeps the rate.
    lambda_s: strength of DyPE at t = 0.
    lambda_t: exponent of DyPE's decay.

  Raises:
    ValueError: if the rule is unknown.
  """

  rule: str = dataclasses.field(metadata={"static": True})
  scale: Number = 1.0
  base_factor: Number = 1.0
  trained: Number | None = None
  watershed: Number = 0.3
  alpha: Number = 1.0
  beta: Number = 32.0
  lambda_s: Number = 2.0
  lambda_t: Number = 2.0

  def __post_init__(self):
    check_rule(self.rule)

  def rates(
    self, time: jax.Array, head_dim: int, axes: int, theta: float
  ) -> jax.Array:
    """Rates of the channel pairs.

    Args:
      time: `f32[B, N]`.
      head_dim: K.
      axes: A.
      theta: base of the rates in training.

    Returns:
      `f32[B, N, K/2]`, in radians per position.

    Raises:
      ValueError: if the rule needs `trained` and it is None.
    """
    if self.trained is None and self.rule in NEEDS_TRAINED:
      raise ValueError(
        f"rule {self.rule!r} needs trained: positions along an axis in training"
      )
    shape = jnp.shape(time)
    scaling = jax.tree.map(
      lambda x: jnp.broadcast_to(x, shape)[..., None], self
    )
    head = _head(head_dim, axes, theta, scaling.base_factor)
    return head.rates * RULES[self.rule](scaling, time[..., None], head)


def check_rule(rule: str) -> None:
  """Raises ValueError if `rule` is not a name of `RULES`."""
  check_name("rule", rule, RULES)


def frequencies(head_dim: int, axes: int, theta: float) -> np.ndarray:
  """Rates `f32[K/2]` of the channel pairs, in radians per position.

  Pair j belongs to axis j mod A and has the rate theta^(-2 A floor(j / A) / K).
  One axis: RoFormer, equation 15. Two axes: rows on even pairs and columns on
  odd ones, as in Next-DiT (Lumina-Next, section 2.1).
  """
  return (theta ** -_exponents(head_dim, axes)).astype(np.float32)


def _exponents(head_dim: int, axes: int) -> np.ndarray:
  return 2.0 * axes * _rank(head_dim, axes) / head_dim


def _rank(head_dim: int, axes: int) -> np.ndarray:
  """`i64[K/2]`: rank of each pair within its axis, fastest first."""
  return np.arange(head_dim // 2) // axes


class _Head(NamedTuple):
  """The channel pairs of a head, as rules read them.

  Attributes:
    channels: K.
    rates: `f32[B, N, K/2]`, as trained.
    exponents: `f32[K/2]`, e of rate = theta^-e.
    depth: `f32[K/2]`, 0 for the fastest pair of an axis to 1 for its slowest.
    log_theta: `f32[B, N, 1]`.
  """

  channels: int
  rates: jax.Array
  exponents: np.ndarray
  depth: np.ndarray
  log_theta: jax.Array


def _head(
  head_dim: int, axes: int, theta: float, base_factor: jax.Array
) -> _Head:
  """Describes a head; `base_factor` is `f32[B, N, 1]`."""
  rank = _rank(head_dim, axes)
  exponents = _exponents(head_dim, axes).astype(np.float32)
  plain = frequencies(head_dim, axes, theta)
  return _Head(
    channels=head_dim,
    rates=plain * base_factor**-exponents,
    exponents=exponents,
    depth=(rank / max(rank[-1], 1)).astype(np.float32),
    log_theta=math.log(theta) + jnp.log(base_factor),
  )


# A rule: (numbers, time `f32[B, N, 1]`, head) -> factor of the rates, which
# broadcasts to `f32[B, N, K/2]`.
Rule = Callable[[RopeScaling, jax.Array, _Head], Number]


def _linear(scaling: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return 1 / scaling.scale


def _ntk_plain(scaling: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return scaling.scale**-head.exponents


def _frequency_aware(
  scaling: RopeScaling, time: jax.Array, head: _Head
) -> Number:
  # Along an axis shorter than 2 pi no pair turns once; then all pairs but the
  # first, whose exponent is 0, are interpolated.
  log_turn = jnp.maximum(jnp.log(scaling.trained / (2 * jnp.pi)), TINY)
  power = head.exponents * head.log_theta / log_turn
  return scaling.scale ** -jnp.minimum(power, 1)


def _time_aware(scaling: RopeScaling, time: jax.Array, head: _Head) -> Number:
  power = head.exponents * head.channels / ((head.channels - 1) * time + 1)
  return scaling.scale ** -jnp.minimum(power, 1)


def _watershed(scaling: RopeScaling, time: jax.Array, head: _Head) -> Number:
  early, late = _linear(scaling, time, head), _ntk_plain(scaling, time, head)
  return jnp.where(time < scaling.watershed, early, late)


def _decay(scaling: RopeScaling, time: jax.Array) -> jax.Array:
  """`f32[B, N, 1]`, from 1 at t = 0 to 0 at t = 1, which float32 may exceed."""
  return jnp.maximum(1 - time, 0) ** scaling.lambda_t


def _by_parts(scaling: RopeScaling, head: _Head, bounds: Number) -> jax.Array:
  """A mean of trained and interpolated rates, weighted by the turns along L."""
  turns = scaling.trained * head.rates / (2 * jnp.pi)
  low, high = bounds * scaling.alpha, bounds * scaling.beta
  kept = jnp.clip((turns - low) / jnp.maximum(high - low, TINY), 0, 1)
  return kept + (1 - kept) / scaling.scale


RULES: dict[str, Rule] = {
  "none": lambda s, t, head: 1.0,
  "linear": _linear,
  "ntk": lambda s, t, head: s.scale**-head.depth,
  "ntk_plain": _ntk_plain,
  "yarn": lambda s, t, head: _by_parts(s, head, 1.0),
  "frequency_aware": _frequency_aware,
  "time_aware": _time_aware,
  "watershed": _watershed,
  "dype_linear": lambda s, t, head: s.scale ** -(s.lambda_s * _decay(s, t)),
  "dype_ntk": lambda s, t, head: (
    s.scale ** -(s.lambda_s * _decay(s, t) * head.depth)
  ),
  "dype_yarn": lambda s, t, head: _by_parts(s, head, _decay(s, t)),
}
NEEDS_TRAINED = ("yarn", "frequency_aware", "dype_yarn")


def angles(ids: jax.Array, rates: jax.Array) -> jax.Array:
  """Positions `i32[B, L, A]` -> angles `f32[B, L, K/2]`.

  Rates are `f32[K/2]`, or broadcast to `f32[B, L, K/2]`.
  """
  of_pair = np.arange(rates.shape[-1]) % ids.shape[-1]
  return ids.astype(jnp.float32)[..., of_pair] * rates


class Rotation(NamedTuple):
  """Cosines and sines `f32[B, L, K/2]` of every token's angles."""

  cos: jax.Array
  sin: jax.Array


def rotation(angles: jax.Array) -> Rotation:
  """The rotation by these angles `f32[B, L, K/2]`, used in every layer."""
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates the channel pairs (2j, 2j + 1) of `[B, L, H, K]`.

  Computes in float32 and returns x's dtype.
  """
  cos, sin = (a[:, :, None, :] for a in rotation)
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  real, imaginary = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack(
    [real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1
  )
  return turned.reshape(x.shape).astype(x.dtype)
