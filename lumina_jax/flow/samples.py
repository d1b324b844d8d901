"""How values of samples lie in a state: packed in rows, in a batch, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.tokens import per_token


class Samples(NamedTuple):
  """The samples of a state x, whose times are `f32[*T]`.

  A solver that gives every sample steps and noise of its own knows no more of
  their layout than this. If a state is a tree, `spread` returns one like it.

  Attributes:
    spread: values of samples `[*T]` -> what broadcasts against x.
    mean: `[like x]` -> `[*T]`, over the elements of each sample.
    normal: times `[*T]` -> standard normal numbers like x, others at any other
      time; None where no solver asks for them.
  """

  spread: Callable[[jax.Array], Any]
  mean: Callable[[Any], jax.Array]
  normal: Callable[[jax.Array], Any] | None = None


# One sample, or several that share their time and every step: T is ().
TOGETHER = Samples(spread=lambda values: values, mean=jnp.mean)


def batch(x: jax.Array) -> Samples:
  """Samples along the first axis of a state like x: T is (B,)."""
  rest = tuple(range(1, x.ndim))
  return Samples(
    spread=lambda values: jnp.expand_dims(values, rest),
    mean=lambda values: jnp.mean(values, axis=rest),
  )


def members(segments: jax.Array, count: int) -> jax.Array:
  """`bool[B, L, N]`: whether a token of `i32[B, L]` is of a sample."""
  return segments[..., None] == jnp.arange(1, count + 1)


def rows(segments: jax.Array, real: jax.Array, count: int) -> Samples:
  """Samples packed in rows of tokens, of a state `f32[B, L, P]`: T is (B, N).

  Args:
    segments: `i32[B, L]`, the sample of a token, from 1; 0 = padding.
    real: `bool[B, L]`, whether a token holds values at all.
    count: N.
  """
  member = members(segments, count) & real[..., None]
  each = jnp.maximum(member.sum(axis=1), 1)

  def mean(x):
    values = jnp.mean(x.astype(jnp.float32), axis=-1)
    return jnp.einsum("BL,BLN->BN", values, member.astype(jnp.float32)) / each

  return Samples(
    spread=lambda values: per_token(values[..., None], segments), mean=mean
  )
