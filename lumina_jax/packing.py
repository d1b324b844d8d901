"""Packing: samples of any sizes side by side in rows of one size.

numpy only; like `tokens` it leaves JAX alone, since data workers import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.tokens import PATCH, Condition, Grid, Tokens


def pack(
  grids: Sequence[Grid | None],
  patches: Sequence[np.ndarray | None],
  length: int,
  patch_dim: int,
  axes: int,
) -> Tokens:
  """Lays samples side by side in one row of `length` tokens (numpy, no B).

  Args:
    grids: layout of each sample, in the order of its segment number; None for
      one that is missing, whose number is left free.
    patches: `f32[L_n, P]` of each sample, from `Grid.tokenize`.
    length: tokens of the row; what the samples leave is padding.
    patch_dim: P, so that a row without samples has a shape too.
    axes: A, likewise.

  Raises:
    ValueError: if the samples do not fit.
  """
  used = sum(grid.num_tokens for grid in grids if grid)
  if used > length:
    raise ValueError(f"{used} tokens do not fit into a row of {length}")
  row = Tokens(
    patches=np.zeros((length, patch_dim), np.float32),
    ids=np.zeros((length, axes), np.int32),
    kinds=np.full(length, PATCH, np.int32),
    segments=np.zeros(length, np.int32),
  )
  start = 0
  for number, (grid, values) in enumerate(
    zip(grids, patches, strict=True), start=1
  ):
    if grid is None:
      continue
    if values.shape[-1] != patch_dim or grid.ids.shape[-1] != axes:
      raise ValueError(
        f"sample {number} has {values.shape[-1]} values a patch on "
        f"{grid.ids.shape[-1]} axes; the row takes {patch_dim} on {axes}"
      )
    place = slice(start, start + grid.num_tokens)
    row.patches[place] = values
    row.ids[place] = grid.ids
    row.kinds[place] = grid.kinds
    row.segments[place] = number
    start = place.stop
  return row


def pack_text(
  codes: Sequence[np.ndarray | None],
  words: int,
  width: int,
  dtype: Any = np.int32,
) -> Condition:
  """Lays the text codes of a row's samples side by side (numpy, no B).

  Args:
    codes: `i32[S_n, K]` of each sample, in the order of its segment number;
      of a frozen language model features `f32[S_n, E]`. None for a missing one.
    words: S of the row; what the samples leave is padding.
    width: K, so that a row without samples has a shape too.
    dtype: of the codes.

  Returns:
    A condition with `text` and `text_segments` only.
  """
  text = np.zeros((words, width), dtype)
  segments = np.zeros(words, np.int32)
  start = 0
  for number, sample in enumerate(codes, start=1):
    if sample is None:
      continue
    place = slice(start, start + len(sample))
    text[place], segments[place] = sample, number
    start = place.stop
  return Condition(text=text, text_segments=segments)


def stack(rows: Sequence[NamedTuple]) -> Any:
  """Stacks rows of `Tokens` (or `Condition`) into a batch, field by field."""
  return type(rows[0])(
    *(
      None if field[0] is None else np.stack(field)
      for field in zip(*rows, strict=True)
    )
  )


def ladder(tokens: int) -> int:
  """Tokens of a row that holds so many: eight steps an octave.

  So many sizes share few compiled programs, at the price of an eighth of
  padding at most, beyond the sixteen tokens that every row has.
  """
  step = max(16, 2 ** (tokens.bit_length() - 4))
  return -(-tokens // step) * step


def first_fit(
  sizes: Sequence[Sequence[int]], budget: Sequence[int]
) -> list[list[int]]:
  """Packs items into rows, largest first, each into the first row it fits.

  Args:
    sizes: for each item what it takes of each budget, e.g. (tokens, words, 1).
    budget: what one row offers of each, e.g. (tokens, words, samples).

  Returns:
    The item numbers of each row. Depends on nothing but the arguments.

  Raises:
    ValueError: if an item exceeds the budget by itself.
  """
  for item, size in enumerate(sizes):
    if any(s > b for s, b in zip(size, budget, strict=True)):
      raise ValueError(
        f"item {item} takes {tuple(size)}, a row offers {tuple(budget)}"
      )
  sizes = np.reshape(sizes, (-1, len(budget)))
  rows: list[list[int]] = []
  room = np.tile(np.asarray(budget), (len(sizes), 1))  # of as many rows at most
  for item in np.argsort(-sizes[:, 0], kind="stable").tolist():
    fits = np.all(sizes[item] <= room[: len(rows) + 1], axis=1)
    number = int(np.argmax(fits))  # The last of these rows is still empty.
    if number == len(rows):
      rows.append([])
    rows[number].append(item)
    room[number] -= sizes[item]
  return [sorted(row) for row in rows]
