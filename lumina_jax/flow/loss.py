"""The flow-matching loss: its times, and a mean that packing respects.

B rows, L tokens, N samples a row, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumina_jax.flow import schedule
from lumina_jax.flow.samples import members, rows


@dataclasses.dataclass(frozen=True)
class TimeDistribution:
  """How training times are drawn.

  Attributes:
    name: "uniform" on [low, high), or "logit_normal": t = sigmoid(u), u ~
      N(mean, std^2) (Esser et al. 2024, section 3.1; the original's "lognorm").
    mean: of the normal; above 0 favours data, below 0 noise.
    std: of the normal.
    low: where uniform times begin, from 0 (noise).
    high: where they end, up to 1 (data).
    shift: f > 0; t becomes t / (t + f - f t), as in sampling: above 1 is
      towards noise. (The `shift_3` of the original's training goes the other
      way; it is 1 / 3 here.)
    base_tokens: 0, or the size at which the shift is as given. That of a sample
      of n tokens is sqrt(n / base_tokens) times as much, since larger pictures
      keep more of their signal under the same noise (Esser et al. 2024,
      equation 23). Separators count, as in sampling.
  """

  name: str
  mean: float = 0.0
  std: float = 1.0
  low: float = 0.0
  high: float = 1.0
  shift: float = 1.0
  base_tokens: int = 0

  def __post_init__(self):
    if self.name not in ("uniform", "logit_normal"):
      raise ValueError(
        f"time distribution {self.name!r}: use 'uniform' or 'logit_normal'"
      )
    if not self.std > 0:
      raise ValueError(f"std = {self.std}: must be positive")
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(
        f"low = {self.low} and high = {self.high}: 0 <= low < high <= 1"
      )
    if self.name != "uniform" and (self.low, self.high) != (0, 1):
      raise ValueError(
        f"low = {self.low} and high = {self.high} are of 'uniform' times; "
        f"{self.name!r} has mean and std"
      )
    if not (self.shift > 0 and math.isfinite(self.shift)):
      raise ValueError(f"shift = {self.shift} must be positive and finite")
    if self.base_tokens < 0:
      raise ValueError(
        f"base_tokens = {self.base_tokens}: a number of tokens, or 0 for one "
        "shift of all sizes"
      )

  def sample(
    self, keys: jax.Array, tokens: jax.Array | None = None
  ) -> jax.Array:
    """One time per key.

    Args:
      keys: `key[...]`.
      tokens: `i32[...]` of the sample of each; not read without `base_tokens`.

    Returns:
      `f32[...]`.

    Raises:
      ValueError: if there are `base_tokens` and no tokens.
    """
    return self._shifted(self._drawn(keys), tokens)

  def _drawn(self, keys: jax.Array) -> jax.Array:
    if self.name == "uniform":
      draw = functools.partial(
        jax.random.uniform, minval=self.low, maxval=self.high
      )
      return _each(draw, keys)
    normal = _each(jax.random.normal, keys)
    return jax.nn.sigmoid(self.mean + self.std * normal)

  def _shifted(self, t: jax.Array, tokens: jax.Array | None) -> jax.Array:
    if not self.base_tokens:
      return t if self.shift == 1 else schedule.shift(t, self.shift)
    if tokens is None:
      raise ValueError(
        f"base_tokens = {self.base_tokens}: the shift goes by the size of each "
        "sample; give tokens, or set base_tokens to 0"
      )
    # Where there is no sample, a time is drawn all the same, and is finite.
    size = jnp.maximum(tokens, 1) / self.base_tokens
    return schedule.shift(t, self.shift * jnp.sqrt(size))


def _each(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
  return jax.vmap(draw)(keys.reshape(-1)).reshape(keys.shape)


def per_sample(
  error: jax.Array, real: jax.Array, segments: jax.Array, samples: int
) -> tuple[jax.Array, jax.Array]:
  """Mean squared error of each sample over its own patches.

  Args:
    error: `f32[B, L, P]`, prediction minus target.
    real: `bool[B, L]`, True on patches (no separator, no padding).
    segments: `i32[B, L]`.
    samples: N.

  Returns:
    `f32[B, N]` losses, zero where there is no sample, and `bool[B, N]`, whether
    there is one. A batch's loss is sum(losses) / sum(exists), so that every
    sample weighs the same whatever its size, row or microbatch.
  """
  loss = rows(segments, real, samples).mean(error.astype(jnp.float32) ** 2)
  member = members(segments, samples) & real[..., None]
  return loss, member.any(axis=1)


def sizes(segments: jax.Array, samples: int) -> jax.Array:
  """Tokens of each sample: segments `i32[B, L]` -> `i32[B, N]`."""
  return members(segments, samples).sum(axis=1)
