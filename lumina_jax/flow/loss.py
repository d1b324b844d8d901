"""The flow-matching loss: training times, and means per sample.

B rows, L tokens, N samples a row, P patch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lumina_jax.files import schema
from lumina_jax.files.suggest import check_name
from lumina_jax.flow import schedule
from lumina_jax.flow.samples import members, rows


@dataclasses.dataclass(frozen=True)
class TimeDistribution:
  """The distribution of training times.

  Attributes:
    name: "uniform" on [low, high), or "logit_normal": t = sigmoid(u), u ~
      N(mean, std^2) (Esser et al. 2024, section 3.1; "lognorm" in Lumina-T2X).
    mean: mean of u; above 0 favours data, below 0 noise.
    std: standard deviation of u.
    low: lower end of uniform times, at least 0 (noise).
    high: upper end of uniform times, at most 1 (data).
    shift: f > 0; t becomes t / (t + f - f t) as in sampling, so values above 1
      favour noise. (The `shift_3` of Lumina-T2X's training goes the other way
      and is 1 / 3 here.)
    base_tokens: number of tokens at which `shift` applies as it is; a sample of
      n tokens gets sqrt(n / base_tokens) times as much, since larger samples
      keep more of their signal under the same noise (Esser et al. 2024,
      equation 23). Separators count, as in sampling. 0 = the same shift for all
      sizes.

  Raises:
    ValueError: for an unknown name, or numbers that define no distribution.
  """

  name: str
  mean: float = 0.0
  std: float = 1.0
  low: float = 0.0
  high: float = 1.0
  shift: float = 1.0
  base_tokens: int = 0

  def __post_init__(self):
    names = "uniform", "logit_normal"
    check_name("time distribution", self.name, names)
    schema.check_positive(self, "std")
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(
        f"low = {self.low} and high = {self.high}: 0 <= low < high <= 1"
      )
    if self.name != "uniform" and (self.low, self.high) != (0, 1):
      raise ValueError(
        f"low = {self.low} and high = {self.high} apply to 'uniform' only; "
        f"{self.name!r} takes mean and std"
      )
    if not (self.shift > 0 and math.isfinite(self.shift)):
      raise ValueError(f"shift = {self.shift} must be positive and finite")
    if self.base_tokens < 0:
      raise ValueError(
        f"base_tokens = {self.base_tokens}: expected a number of tokens, or 0 "
        "for the same shift at all sizes"
      )

  def sample(
    self, keys: jax.Array, tokens: jax.Array | None = None
  ) -> jax.Array:
    """Samples one time per key.

    Args:
      keys: `key[...]`.
      tokens: size of the sample of each key, `i32[...]`; required with
        `base_tokens`, otherwise ignored.

    Returns:
      `f32[...]`.

    Raises:
      ValueError: if `base_tokens` is set and tokens are missing.
    """
    return self._shift(self._sample(keys), tokens)

  def _sample(self, keys: jax.Array) -> jax.Array:
    if self.name == "uniform":
      uniform = functools.partial(
        jax.random.uniform, minval=self.low, maxval=self.high
      )
      return _per_key(uniform, keys)
    normal = _per_key(jax.random.normal, keys)
    return jax.nn.sigmoid(self.mean + self.std * normal)

  def _shift(self, t: jax.Array, tokens: jax.Array | None) -> jax.Array:
    if not self.base_tokens:
      return t if self.shift == 1 else schedule.shift(t, self.shift)
    if tokens is None:
      raise ValueError(
        f"base_tokens = {self.base_tokens}: the shift depends on the size of "
        "each sample; pass tokens, or set base_tokens to 0"
      )
    # Empty slots have no tokens; their times stay finite.
    size = jnp.maximum(tokens, 1) / self.base_tokens
    return schedule.shift(t, self.shift * jnp.sqrt(size))


def _per_key(
  sample: Callable[[jax.Array], jax.Array], keys: jax.Array
) -> jax.Array:
  return jax.vmap(sample)(keys.reshape(-1)).reshape(keys.shape)


def per_sample_loss(
  error: jax.Array, real: jax.Array, segments: jax.Array, samples: int
) -> tuple[jax.Array, jax.Array]:
  """Mean squared error of each sample over its own patches.

  Args:
    error: `f32[B, L, P]`, prediction minus target.
    real: `bool[B, L]`, True on patches (no separator, no padding).
    segments: `i32[B, L]`.
    samples: N.

  Returns:
    Losses `f32[B, N]`, zero for empty slots, and `bool[B, N]`, whether a slot
    holds a sample. The loss of a batch is sum(losses) / sum(exists): every
    sample weighs the same, whatever its size, row or microbatch.
  """
  loss = rows(segments, real, samples).mean(error.astype(jnp.float32) ** 2)
  member = members(segments, samples) & real[..., None]
  return loss, member.any(axis=1)


def token_counts(segments: jax.Array, samples: int) -> jax.Array:
  """Number of tokens of each sample: segments `i32[B, L]` -> `i32[B, N]`."""
  return members(segments, samples).sum(axis=1)
