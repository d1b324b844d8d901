"""Layouts of samples in a state: packed in rows, along a batch axis, alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.tokens import per_token


def _select_all(keep: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(functools.partial(_where, keep), new, old)


class Samples(NamedTuple):
  """How the samples of a state x lie in it.

  Each sample has a time of its own, so times are `f32[*T]` with one number per
  sample: T is () for a single sample, (B,) for a batch, (B, N) for packed rows.
  Solvers learn the layout of a state from this record alone.

  Attributes:
    spread: `[*T]` -> an array that broadcasts against x. If x is a tree, it
      returns a tree like x.
    mean: `[like x]` -> `[*T]`, the mean over the elements of each sample.
    normal: times `[*T]` -> standard normal noise like x, independent between
      times. None suits solvers that use no noise.
    select: (keep `bool[*T]`, new, old) -> the memory of a velocity: `new` where
      `keep` holds, `old` for the other samples. With two guidance branches,
      `keep` may also hold one number per sample and branch, with the branches
      concatenated along its first axis.
  """

  spread: Callable[[jax.Array], Any]
  mean: Callable[[Any], jax.Array]
  normal: Callable[[jax.Array], Any] | None = None
  select: Callable[[jax.Array, Any, Any], Any] = _select_all


# One sample, or several that share their time and their steps: T is ().
SINGLE = Samples(spread=lambda values: values, mean=jnp.mean)


def batch(x: jax.Array) -> Samples:
  """Samples along the first axis of a state like x: T is (B,).

  Args:
    x: `[B, ...]`.

  Returns:
    The layout. The memory of a velocity has the samples along the first axis of
    its leaves, B of them or 2 B under guidance.
  """
  rest = tuple(range(1, x.ndim))
  return Samples(
    spread=lambda values: jnp.expand_dims(values, rest),
    mean=lambda values: jnp.mean(values, axis=rest),
    select=lambda keep, new, old: jax.tree.map(
      functools.partial(_where_rows, keep), new, old
    ),
  )


def masked_batch(mask: jax.Array) -> Samples:
  """A padded batch: means run over the elements where the mask holds.

  Args:
    mask: `bool[B, ...]`, of the state's shape.
  """
  axes = tuple(range(1, mask.ndim))
  count = jnp.maximum(jnp.sum(mask, axis=axes), 1)
  return batch(mask)._replace(
    mean=lambda x: jnp.sum(jnp.where(mask, x, 0), axis=axes) / count
  )


class RowMemory(NamedTuple):
  """Memory of a velocity for samples packed in rows.

  R is B, or 2 B under guidance: conditional rows first, then unconditional
  ones. Both branches are always present, so shapes stay fixed while only one
  branch is evaluated.

  Attributes:
    layers: tree of `[layers, R, L, ...]`, values per layer and token.
    tokens: tree of `[R, L, ...]`, values per token.
    samples: tree of `[R, N, ...]`, values per sample.
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
  """Samples packed in rows of tokens, for states `f32[B, L, P]`: T is (B, N).

  Args:
    segments: `i32[B, L]`, the sample of each token, from 1; 0 = padding.
    real: `bool[B, L]`, True for patches, False for separators and padding.
    count: N.

  Returns:
    The layout. The memory of a velocity is a `RowMemory` or empty; `select`
    raises a TypeError for any other.
  """
  member = members(segments, count) & real[..., None]
  size = jnp.maximum(member.sum(axis=1), 1)

  def mean(x):
    values = jnp.mean(x.astype(jnp.float32), axis=-1)
    return jnp.einsum("BL,BLN->BN", values, member.astype(jnp.float32)) / size

  return Samples(
    spread=lambda values: per_token(values[..., None], segments),
    mean=mean,
    select=functools.partial(_select_rows, segments),
  )


def _select_rows(
  segments: jax.Array, keep: jax.Array, new: Any, old: Any
) -> Any:
  """Selects by sample in a `RowMemory`; keep is `bool[B or R, N]`."""
  if not jax.tree.leaves(new):
    return new
  if not isinstance(new, RowMemory):
    raise TypeError(
      "over packed rows the memory of a velocity must be a RowMemory, not "
      f"{type(new).__name__}"
    )
  segments = _tile(segments, len(keep))
  of_tokens = per_token(keep[..., None], segments)[..., 0]
  of_tokens = jnp.broadcast_to(of_tokens, segments.shape)
  by_token = _map_rows(
    functools.partial(_where_rows, of_tokens),
    new._replace(samples=()),
    old._replace(samples=()),
  )
  by_sample = jax.tree.map(
    functools.partial(_where_rows, keep), new.samples, old.samples
  )
  return by_token._replace(samples=by_sample)


def _where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
  """`jnp.where`, without a program for what the velocity leaves unchanged."""
  return new if new is old else jnp.where(mask, new, old)


def _where_rows(
  mask: jax.Array, new: jax.Array, old: jax.Array, axis: int = 0
) -> jax.Array:
  """Selects by rows along an axis, where the axes of the mask begin.

  The axis may hold the rows of the mask several times, once per branch.
  """
  if new is old:
    return new
  mask = _tile(mask, new.shape[axis])
  rest = new.ndim - axis - mask.ndim
  mask = jnp.expand_dims(mask, (*range(axis), *range(-rest, 0)))
  return _where(mask, new, old)


def _tile(x: jax.Array, rows: int) -> jax.Array:
  """Repeats the rows of x until there are so many."""
  if rows % len(x):
    raise ValueError(
      f"the memory of a velocity has {rows} rows; expected {len(x)}, or that "
      "many per guidance branch"
    )
  return jnp.tile(x, (rows // len(x),) + (1,) * (x.ndim - 1))


def _map_rows(function: Callable[..., jax.Array], *memories: Any) -> RowMemory:
  """Maps function(*leaves, axis=axis of the rows) over memories."""
  axes = RowMemory(layers=1, tokens=0, samples=0)
  return RowMemory(
    *(
      jax.tree.map(functools.partial(function, axis=axis), *fields)
      for axis, *fields in zip(axes, *memories, strict=True)
    )
  )
