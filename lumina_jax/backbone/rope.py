"""Rotary positions on any number of axes, and rules to stretch them.

A rule says how fast each channel pair turns; beyond the sizes of training it
lets them turn slower. Which rule is static. Its numbers are data of a sample,
so no scale, time or factor ever compiles anew.

B rows, L tokens, N samples a row, H heads, K head channels, A axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.files.suggest import check_name

Number = jax.Array | float
# Stands in for zero in divisors; far below any turn of a pair.
TINY = 1e-9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How positions are stretched: a rule by name, and the numbers it reads.

  A pair of rate theta^-e turns slower by scale^p, p from 0 (as trained) to 1
  (interpolated). With k of the D / 2 pairs of an axis, D = K / A, e = 2k / D,
  at time t from 0 (noise) to 1 (data), and L trained positions:

  "none": p = 0.
  "linear": p = 1, position interpolation (Chen et al. 2023).
  "ntk": p = 2k / (D - 2), that is theta scale^(D / (D - 2)). The slowest pair
    is interpolated, the fastest one stays (Lumina-Next, section 2.1).
  "ntk_plain": p = e, that is theta scale; what the original's programs do.
  "yarn": pairs that turn more than `beta` times along L stay, those with fewer
    than `alpha` turns are interpolated, rates between are mixed in proportion
    to the turns (Peng et al. 2023, section 3.2, NTK by parts). Its temperature
    of the attention is left out: scores have `Condition.attention_scale`.
  "frequency_aware": p = min(e / log_theta(L / 2 pi), 1). The pair that turns
    once along L, and all slower ones, are interpolated (Lumina-Next, 2.1).
  "time_aware": p = min(e K / d, 1) with d = (K - 1) t + 1: from interpolation
    of nearly all pairs to "ntk_plain" (Lumina-Next, section 2.1).
  "watershed": "linear" while t < `watershed`, "ntk_plain" from there on; the
    time-aware rule as the original's programs have it.
  "dype_linear", "dype_ntk": p of "linear" and "ntk" times
    kappa = lambda_s (1 - t)^lambda_t: at first stronger than these, in the end
    as trained (DyPE, Issachar et al. 2025; its time runs the other way).
  "dype_yarn": "yarn" with `alpha` and `beta` times (1 - t)^lambda_t.

  The papers write max of two rates where min of two powers stands here. From
  scale 1 on that is the same; below 1 ours is the mirror image.

  Numbers are one for all, or `f32[B, N]`.

  Attributes:
    rule: a name of `RULES`.
    scale: how many times more positions an axis has than in training; the
      original's `scale_factor` or `rope_scaling_factor`.
    base_factor: of theta, under any rule; the original's `ntk_factor`.
    trained: L, positions along an axis in training, in tokens; None for rules
      that do not ask.
    watershed: a time.
    alpha: turns along L.
    beta: likewise.
    lambda_s: of DyPE; its strength at t = 0.
    lambda_t: of DyPE; how fast that falls.

  Raises:
    ValueError: for a rule that there is not.
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
    """How fast each channel pair turns.

    Args:
      time: `f32[B, N]`.
      head_dim: K.
      axes: A.
      theta: base of the rates in training.

    Returns:
      `f32[B, N, K/2]`, in radians per position.

    Raises:
      ValueError: if the rule asks for `trained`, and there is none.
    """
    if self.trained is None and self.rule in OF_LENGTH:
      raise ValueError(
        f"rule {self.rule!r} needs trained: positions along an axis in training"
      )
    shape = jnp.shape(time)
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, shape)[..., None], self)
    head = _head(head_dim, axes, theta, each.base_factor)
    return head.rates * RULES[self.rule](each, time[..., None], head)


def check_rule(rule: str) -> None:
  """Raises ValueError for a rule that is not in `RULES`, with a near name."""
  check_name("rule", rule, RULES)


def frequencies(head_dim: int, axes: int, theta: float) -> np.ndarray:
  """Returns `f32[K/2]`, the angle per unit of position of each channel pair.

  Pair j belongs to axis j mod A and turns with theta^(-2 A floor(j / A) / K).
  One axis: RoFormer, equation 15. Two axes: rows on even pairs and columns on
  odd ones, as Next-DiT has it (Lumina-Next, section 2.1).
  """
  return (theta ** -_exponents(head_dim, axes)).astype(np.float32)


def _exponents(head_dim: int, axes: int) -> np.ndarray:
  return 2.0 * axes * _order(head_dim, axes) / head_dim


def _order(head_dim: int, axes: int) -> np.ndarray:
  """`i64[K/2]`: place of each pair among those of its axis, fastest first."""
  return np.arange(head_dim // 2) // axes


class _Head(NamedTuple):
  """What rules know of the channel pairs of a head.

  Attributes:
    channels: K.
    rates: `f32[B, N, K/2]`, as trained.
    exponents: `f32[K/2]`, e of rate = theta^-e.
    depth: `f32[K/2]`, from 0, an axis's fastest pair, to 1, its slowest.
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
  """Base factor `f32[B, N, 1]`."""
  order = _order(head_dim, axes)
  exponents = _exponents(head_dim, axes).astype(np.float32)
  plain = frequencies(head_dim, axes, theta)
  return _Head(
    channels=head_dim,
    rates=plain * base_factor**-exponents,
    exponents=exponents,
    depth=(order / max(order[-1], 1)).astype(np.float32),
    log_theta=math.log(theta) + jnp.log(base_factor),
  )


# A rule: numbers and time `f32[B, N, 1]` -> what rates are multiplied by, of a
# shape that broadcasts to `f32[B, N, K/2]`.
Rule = Callable[[RopeScaling, jax.Array, _Head], Number]


def _none(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return 1.0


def _linear(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return 1 / how.scale


def _ntk(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return how.scale**-head.depth


def _ntk_plain(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return how.scale**-head.exponents


def _yarn(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return _by_parts(how, head, 1.0)


def _frequency_aware(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  # On an axis shorter than 2 pi no pair turns once: all but the first, whose
  # exponent is 0, are interpolated.
  log_turn = jnp.maximum(jnp.log(how.trained / (2 * jnp.pi)), TINY)
  power = head.exponents * head.log_theta / log_turn
  return how.scale ** -jnp.minimum(power, 1)


def _time_aware(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  power = head.exponents * head.channels / ((head.channels - 1) * time + 1)
  return how.scale ** -jnp.minimum(power, 1)


def _watershed(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  early, late = _linear(how, time, head), _ntk_plain(how, time, head)
  return jnp.where(time < how.watershed, early, late)


def _dype_linear(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return how.scale ** -(how.lambda_s * _noise(how, time))


def _dype_ntk(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return how.scale ** -(how.lambda_s * _noise(how, time) * head.depth)


def _dype_yarn(how: RopeScaling, time: jax.Array, head: _Head) -> Number:
  return _by_parts(how, head, _noise(how, time))


def _noise(how: RopeScaling, time: jax.Array) -> jax.Array:
  """`f32[B, N, 1]`, from 1 at t = 0 to 0 at t = 1, which float32 may pass."""
  return jnp.maximum(1 - time, 0) ** how.lambda_t


def _by_parts(how: RopeScaling, head: _Head, bounds: Number) -> jax.Array:
  """A mean of a pair as trained and interpolated, by its turns along L."""
  turns = how.trained * head.rates / (2 * jnp.pi)
  low, high = bounds * how.alpha, bounds * how.beta
  kept = jnp.clip((turns - low) / jnp.maximum(high - low, TINY), 0, 1)
  return kept + (1 - kept) / how.scale


RULES: dict[str, Rule] = {
  "none": _none,
  "linear": _linear,
  "ntk": _ntk,
  "ntk_plain": _ntk_plain,
  "yarn": _yarn,
  "frequency_aware": _frequency_aware,
  "time_aware": _time_aware,
  "watershed": _watershed,
  "dype_linear": _dype_linear,
  "dype_ntk": _dype_ntk,
  "dype_yarn": _dype_yarn,
}
OF_LENGTH = ("yarn", "frequency_aware", "dype_yarn")  # They read `trained`.


def angles(ids: jax.Array, rates: jax.Array) -> jax.Array:
  """Positions `i32[B, L, A]` -> angles `f32[B, L, K/2]`.

  Rates are `f32[K/2]`, or `f32[B, L, K/2]` with 1 for B or L where all agree.
  """
  of_pair = np.arange(rates.shape[-1]) % ids.shape[-1]
  return ids.astype(jnp.float32)[..., of_pair] * rates


class Rotation(NamedTuple):
  """Attributes: cos and sin `f32[B, L, K/2]` of every token's angles."""

  cos: jax.Array
  sin: jax.Array


def rotation(angles: jax.Array) -> Rotation:
  """How every token turns, the same in every layer."""
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
  """Turns channel pairs (2j, 2j + 1) of `[B, L, H, K]`.

  Computes in float32 and returns x's dtype.
  """
  cos, sin = (a[:, :, None, :] for a in rotation)
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  real, imaginary = pairs[..., 0], pairs[..., 1]
  turned = jnp.stack(
    [real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1
  )
  return turned.reshape(x.shape).astype(x.dtype)
