"""Large pictures in tiles, long videos in batches: memory bounded by a piece.

A picture is cut into tiles of one shape that overlap; what becomes of each is
blended linearly where they do. The last tile of a row ends where the picture
does, and the tiles between are spread evenly, so all of them are full and one
compiled program serves them all. Pieces go through one after another in a loop
in Python, and what they become is summed on the host: a device holds one piece
and never the whole, and a program that is compiled for a piece serves pictures
of any size, which a loop within the program would not.

A norm or attention within sees its tile only, so results differ a little from
those of the whole picture; blending spreads the difference of neighbours over
all of their overlap.

B frames, N tiles along an axis. A cell is the square of pixels of one latent.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

LEAST = 8  # cells along a tile: with fewer, most of it would be rim
OVERLAP = 4  # Neighbours share at least a 4th of a tile.

Run = Callable[[np.ndarray], jax.Array]


class Walk(NamedTuple):
  """Takes frames through a network, whole or in pieces.

  Attributes:
    run: `[B, rows, columns, C]` -> the same of other sides and channels.
    enter: places along a side of a cell in what enters.
    leave: likewise in what leaves.
    tile: side of a tile in pixels; None = pictures go whole.
    frames_at_once: the most in a batch; None = all.
  """

  run: Run
  enter: int
  leave: int
  tile: int | None
  frames_at_once: int | None

  def __call__(self, x: jax.Array) -> jax.Array | np.ndarray:
    """`[..., rows, columns, C]`, with any axes before -> the same.

    Raises:
      ValueError: if tile or frames_at_once is too small.
    """
    run, most = self.run, self.frames_at_once
    if self.tile is not None:
      cells = self._cells()
      if max(x.shape[-3:-1]) > cells * self.enter:
        run = functools.partial(
          tiled, run, tile=cells, enter=self.enter, leave=self.leave
        )
    if most is not None and most < 1:
      raise ValueError(
        f"frames_at_once = {most} must be positive; None takes all at once"
      )
    frames = x.reshape(-1, *x.shape[-3:])
    out = run(frames) if most is None else batched(run, frames, most)
    return out.reshape(*x.shape[:-3], *out.shape[1:])

  def _cells(self) -> int:
    factor = max(self.enter, self.leave)
    if self.tile % factor or self.tile < LEAST * factor:
      raise ValueError(
        f"tile = {self.tile} must be a multiple of {factor} and at least "
        f"{LEAST * factor} pixels; None takes pictures whole"
      )
    return self.tile // factor


def batched(run: Run, frames: jax.Array, most: int) -> jax.Array | np.ndarray:
  """Runs at most so many frames at once; a last batch is padded with zeros.

  Args:
    run: what to run.
    frames: `[B, rows, columns, C]`; if more than `most`, they go through the
      host, as does the result.
    most: frames in a batch.
  """
  if len(frames) <= most:
    return run(frames)
  frames, done = np.asarray(frames), []
  for start in range(0, len(frames), most):
    batch = frames[start : start + most]
    missing = most - len(batch)
    batch = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
    done.append(np.asarray(run(batch))[: most - missing])
  return np.concatenate(done)


def tiled(
  run: Run, x: jax.Array, tile: int, enter: int, leave: int
) -> np.ndarray:
  """Runs a picture's tiles one by one and blends what they become.

  Args:
    run: what to run, on `[B, rows, columns, C]`.
    x: of which there are more than a tile; a side that is shorter is not cut.
    tile: cells along a tile.
    enter: places along a cell of x.
    leave: likewise of the result.

  Returns:
    `f32[B, rows, columns, C']`, in the host's memory.
  """
  x, out = np.asarray(x), None
  sizes = [side // enter for side in x.shape[1:3]]
  tile_sides = [min(tile, size) for size in sizes]
  places = [starts(*pair) for pair in zip(sizes, tile_sides, strict=True)]
  weights = [
    blending(at, side, leave)
    for at, side in zip(places, tile_sides, strict=True)
  ]

  def window(cell, scale):
    return slice(None), *(
      slice(start * scale, (start + side) * scale)
      for start, side in zip(cell, tile_sides, strict=True)
    )

  for numbers in itertools.product(*map(range, map(len, places))):
    cell = [at[n] for at, n in zip(places, numbers, strict=True)]
    piece = np.asarray(run(x[window(cell, enter)]), np.float32)
    if out is None:
      sides = [size * leave for size in sizes]
      out = np.zeros((len(x), *sides, piece.shape[-1]), np.float32)
    row, column = (w[n] for w, n in zip(weights, numbers, strict=True))
    out[window(cell, leave)] += piece * (row[:, None] * column)[..., None]
  return out


def starts(size: int, tile: int) -> list[int]:
  """Where tiles begin, in cells: evenly spread, the last ends with the rest."""
  step = tile - max(tile // OVERLAP, 1)
  count = 1 + -(-(size - tile) // step)
  return [round(n * (size - tile) / max(count - 1, 1)) for n in range(count)]


def blending(at: list[int], tile: int, scale: int) -> np.ndarray:
  """Weights `f32[N, tile * scale]` of tiles, that sum to 1 at every place.

  Each falls linearly to its rim over what it shares with a neighbour.

  Args:
    at: where they begin, in cells.
    tile: cells along each.
    scale: places along a cell.
  """
  length = tile * scale
  place = np.arange(length) + 0.5
  weights = np.ones((len(at), length))
  for n, (a, b) in enumerate(itertools.pairwise(at)):
    shared = (a + tile - b) * scale
    weights[n] = np.minimum(weights[n], (length - place) / shared)
    weights[n + 1] = np.minimum(weights[n + 1], place / shared)
  total = np.zeros((at[-1] + tile) * scale)
  for start, weight in zip(at, weights, strict=True):
    total[start * scale :][:length] += weight
  for start, weight in zip(at, weights, strict=True):
    weight /= total[start * scale :][:length]
  return weights.astype(np.float32)
