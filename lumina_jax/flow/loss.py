"""The flow-matching objective: times, targets and a mean that packing respects.

B rows, L tokens, N samples a row, P patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TimeDistribution:
  """How training times are drawn.

  Attributes:
    name: "uniform" on [0, 1), or "logit_normal": t = sigmoid(u), u ~ N(mean,
      std^2) (Esser et al. 2024, section 3.1; the original's "lognorm").
    mean: of the normal; above 0 favours data, below 0 noise.
    std: of the normal.
  """

  name: str
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    if self.name not in ("uniform", "logit_normal"):
      raise ValueError(
        f"time distribution {self.name!r}: use 'uniform' or 'logit_normal'"
      )
    if not self.std > 0:
      raise ValueError(f"std = {self.std}: must be positive")

  def sample(self, keys: jax.Array) -> jax.Array:
    """One time per key: `key[...]` -> `f32[...]`."""
    if self.name == "uniform":
      return _each(jax.random.uniform, keys)
    normal = _each(jax.random.normal, keys)
    return jax.nn.sigmoid(self.mean + self.std * normal)


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
  square = jnp.mean(error.astype(jnp.float32) ** 2, axis=-1)
  numbers = jnp.arange(1, samples + 1)
  member = (segments[..., None] == numbers) & real[..., None]
  count = member.sum(axis=1)
  total = jnp.einsum("BL,BLN->BN", square, member.astype(jnp.float32))
  return total / jnp.maximum(count, 1), count > 0
