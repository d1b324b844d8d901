"""Packing: samples of any sizes side by side in rows of one size.

Uses numpy only, since data workers import it.
"""

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
  """Packs samples side by side into one row, without the batch axis.

  Args:
    grids: layout of each sample, in the order of segment numbers; None for a
      missing sample, whose segment number stays unused.
    patches: `f32[L_n, P]` of each sample, from `Grid.tokenize`.
    length: number of tokens of the row, including padding.
    patch_dim: P, which defines the shape of a row without samples.
    axes: A, likewise.

  Raises:
    ValueError: if the samples do not fit, or differ from P or A.
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
        f"sample {number} has {values.shape[-1]} values per patch and "
        f"{grid.ids.shape[-1]} position axes; the row has {patch_dim} and "
        f"{axes}"
      )
    place = slice(start, start + grid.num_tokens)
    row.patches[place] = values
    row.ids[place] = grid.ids
    row.kinds[place] = grid.kinds
    row.segments[place] = number
    start = place.stop
  return row


def pack_text(
  texts: Sequence[np.ndarray | None],
  length: int,
  width: int,
  dtype: Any = np.int32,
) -> Condition:
  """Packs the texts of a row's samples side by side, without the batch axis.

  Args:
    texts: codes `i32[S_n, K]` or features `f32[S_n, E]` of each sample, in the
      order of segment numbers; None for a missing sample.
    length: S, number of text tokens of the row, including padding.
    width: K or E, which defines the shape of a row without samples.
    dtype: dtype of the texts.

  Returns:
    A condition with `text` and `text_segments` only.
  """
  text = np.zeros((length, width), dtype)
  segments = np.zeros(length, np.int32)
  start = 0
  for number, sample in enumerate(texts, start=1):
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
  """Rounds a number of tokens up to a row length, eight lengths per octave.

  Many sizes thus share few compiled programs. Padding is at most an eighth of
  the row, or less than 16 tokens.
  """
  step = max(16, 2 ** (tokens.bit_length() - 4))
  return -(-tokens // step) * step


def first_fit(
  sizes: Sequence[Sequence[int]], budget: Sequence[int]
) -> list[list[int]]:
  """Packs items into rows, largest first, each into the first row it fits.

  Args:
    sizes: size of each item in each resource, e.g. (tokens, text tokens, 1).
    budget: size of a row in each resource, e.g. (tokens, text tokens, samples).

  Returns:
    The indices of the items of each row, a function of the arguments alone.

  Raises:
    ValueError: if a single item exceeds the budget.
  """
  for item, size in enumerate(sizes):
    if any(s > b for s, b in zip(size, budget, strict=True)):
      raise ValueError(
        f"item {item} has size {tuple(size)}, which exceeds the budget "
        f"{tuple(budget)} of a row"
      )
  sizes = np.reshape(sizes, (-1, len(budget)))
  rows: list[list[int]] = []
  room = np.tile(np.asarray(budget), (len(sizes), 1))  # One row per item.
  for item in np.argsort(-sizes[:, 0], kind="stable").tolist():
    fits = np.all(sizes[item] <= room[: len(rows) + 1], axis=1)
    number = int(np.argmax(fits))  # The last of these rows is empty.
    if number == len(rows):
      rows.append([])
    rows[number].append(item)
    room[number] -= sizes[item]
  return [sorted(row) for row in rows]
