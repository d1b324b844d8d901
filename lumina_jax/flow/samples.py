"""How the values of samples lie in a state: packed in rows, batched, alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.tokens import per_token


class Samples(NamedTuple):
  """The samples of a state x, whose times are `f32[*T]`.

  Solvers that give every sample its own steps and noise know the layout of a
  state only through this record. If a state is a tree, `spread` returns one
  like it.

  Attributes:
    spread: values of samples `[*T]` -> an array that broadcasts against x.
    mean: `[like x]` -> `[*T]`, the mean over the elements of each sample.
    normal: times `[*T]` -> standard normal noise like x, independent for each
      time; None if no solver asks for noise.
    select: (keep `bool[*T]`, new, old) -> the memory of a velocity, `new` for
      samples to keep and `old` for the others.
  """

  spread: Callable[[jax.Array], Any]
  mean: Callable[[Any], jax.Array]
  normal: Callable[[jax.Array], Any] | None = None
  select: Callable[[jax.Array, Any, Any], Any] = lambda keep, new, old: (
    jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
  )


# One sample, or several that share their time and every step: T is ().
TOGETHER = Samples(spread=lambda values: values, mean=jnp.mean)


def batch(x: jax.Array) -> Samples:
  """Samples along the first axis of a state like x, and of its memory."""
  rest = tuple(range(1, x.ndim))
  return Samples(
    spread=lambda values: jnp.expand_dims(values, rest),
    mean=lambda values: jnp.mean(values, axis=rest),
    select=_select_leading,
  )


class RowMemory(NamedTuple):
  """What a velocity remembers about samples that are packed in rows.

  R rows: B, or 2 B under guidance, the conditional ones first. Both branches
  are always there, so that shapes stay fixed when only one is evaluated.

  Attributes:
    layers: a tree of `[layers, R, L, ...]`, values of tokens in each layer.
    tokens: a tree of `[R, L, ...]`, values of tokens.
    samples: a tree of `[R, N, ...]`, values of samples.
  """

  layers: Any = ()
  tokens: Any = ()
  samples: Any = ()

  def first(self, rows: int) -> RowMemory:
    """The memory of the first rows."""
    return _map_rows(
      lambda x, axis: jax.lax.slice_in_dim(x, 0, rows, axis=axis), self
    )

  def with_first(self, part: RowMemory) -> RowMemory:
    """The memory with its first rows replaced by those of `part`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return _map_rows(lambda x, new, axis: update(x, new, 0, axis), self, part)


def members(segments: jax.Array, count: int) -> jax.Array:
  """`bool[B, L, N]`: whether a token of `i32[B, L]` belongs to a sample."""
  return segments[..., None] == jnp.arange(1, count + 1)


def rows(segments: jax.Array, real: jax.Array, count: int) -> Samples:
  """Samples packed in rows of tokens, of a state `f32[B, L, P]`: T is (B, N).

  Args:
    segments: `i32[B, L]`, the sample of a token, from 1; 0 = padding.
    real: `bool[B, L]`, whether a token holds values.
    count: N.
  """
  member = members(segments, count) & real[..., None]
  each = jnp.maximum(member.sum(axis=1), 1)

  def mean(x):
    values = jnp.mean(x.astype(jnp.float32), axis=-1)
    return jnp.einsum("BL,BLN->BN", values, member.astype(jnp.float32)) / each

  return Samples(
    spread=lambda values: per_token(values[..., None], segments),
    mean=mean,
    select=lambda keep, new, old: _select_rows(segments, keep, new, old),
  )


def _select_leading(keep: jax.Array, new: Any, old: Any) -> Any:
  def leaf(a, b):
    return jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(leaf, new, old)


def _select_rows(
  segments: jax.Array, keep: jax.Array, new: RowMemory, old: RowMemory
) -> RowMemory:
  """Selects by sample in a `RowMemory`; an empty memory has nothing to select.

  Raises:
    TypeError: for a memory of another type, whose layout is unknown.
  """
  if not jax.tree.leaves(new):
    return new
  if not isinstance(new, RowMemory):
    raise TypeError(
      "the memory of a velocity over rows must be a RowMemory, not a "
      f"{type(new).__name__}"
    )
  of_tokens = per_token(keep[..., None], segments)[..., 0]
  of_tokens = jnp.broadcast_to(of_tokens, segments.shape)

  def select(mask):
    def leaf(a, b, axis):
      branches = a.shape[axis] // mask.shape[0]
      wide = jnp.tile(mask, (branches, 1))
      rest = (1,) * (a.ndim - axis - 2)
      return jnp.where(wide.reshape((1,) * axis + wide.shape + rest), a, b)

    return leaf

  tokens = [memory._replace(samples=()) for memory in (new, old)]
  samples = [RowMemory(samples=memory.samples) for memory in (new, old)]
  return _map_rows(select(of_tokens), *tokens)._replace(
    samples=_map_rows(select(keep), *samples).samples
  )


def _map_rows(function: Callable[..., jax.Array], *memories: Any) -> RowMemory:
  """Maps (leaves..., axis of the rows) over memories of one structure."""
  axes = (1, 0, 0)
  return RowMemory(
    *(
      jax.tree.map(functools.partial(function, axis=axis), *fields)
      for axis, *fields in zip(axes, *memories, strict=True)
    )
  )
