"""Large images in tiles, many frames in batches: memory bounded by a part.

An image is cut into overlapping tiles of one shape, and the results are blended
linearly where tiles overlap. The last tile of a row ends with the image and the
others are spread evenly, so all tiles are full and share one program. A loop in
Python runs the tiles and sums the results on the host: a device never holds the
whole, and one program serves images of any size. Results may lie on devices of
several processes; every process then gets all of them.

Norms and attention see one tile only, so the result differs a little from that
of the whole image; blending spreads the difference over the overlap.

B frames, N tiles along an axis. A cell is the square of pixels of one latent.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np

from lumina_jax.files import numbers
from lumina_jax.parallel import processes

MIN_TILE = 8  # Cells along a tile; smaller ones would be mostly border.
OVERLAP = 4  # Neighbours share at least a quarter of a tile.

Run = Callable[[np.ndarray], jax.Array]


def checked_tile(tile: int | None, factor: int) -> int | None:
  """The side of tiles in pixels; None stands for no tiles.

  Raises:
    ValueError: if it is too small, or not a multiple of the factor.
  """
  if tile is None:
    return None
  side = numbers.whole(tile, "tile")
  if side % factor or side < MIN_TILE * factor:
    raise ValueError(
      f"tile = {tile} must be a multiple of {factor} and at least "
      f"{MIN_TILE * factor} pixels; None keeps images whole"
    )
  return side


def checked_frames(frames_at_once: int | None) -> int | None:
  """The size of batches; None stands for one batch.

  Raises:
    ValueError: if it is not positive.
  """
  if frames_at_once is None:
    return None
  return numbers.positive(frames_at_once, "frames_at_once")


def run_in_parts(
  run: Run,
  x: jax.Array,
  in_scale: int,
  out_scale: int,
  cells: int | None,
  frames_at_once: int | None,
) -> jax.Array | np.ndarray:
  """Runs frames in batches, and large ones in tiles.

  Args:
    run: function of `[B, rows, columns, C]`; may change sides and channels.
    x: frames `[..., rows, columns, C]`.
    in_scale: rows or columns of x per cell.
    out_scale: rows or columns of the result per cell.
    cells: side of a tile in cells; None = frames stay whole.
    frames_at_once: largest number of frames in a batch; None = all.

  Returns:
    The results `[..., rows', columns', C']`, on the host if there are several
    parts.
  """
  if cells is not None and max(x.shape[-3:-1]) > cells * in_scale:
    run = functools.partial(
      run_tiles, run, tile=cells, in_scale=in_scale, out_scale=out_scale
    )
  frames = x.reshape(-1, *x.shape[-3:])
  out = run_batches(run, frames, frames_at_once)
  return out.reshape(*x.shape[:-3], *out.shape[1:])


def run_batches(
  run: Run, x: jax.Array, batch_size: int | None
) -> jax.Array | np.ndarray:
  """Runs batches of one size; zeros fill the last one.

  Args:
    run: function of `[B, ...]`.
    x: inputs `[B, ...]`.
    batch_size: largest B of a batch; None = all.

  Returns:
    The results `[B, ...]`, on the host if there are several batches.
  """
  if batch_size is None or len(x) <= batch_size:
    return run(x)
  x, outs = processes.gather(x), []
  for start in range(0, len(x), batch_size):
    batch = x[start : start + batch_size]
    padding = [(0, batch_size - len(batch))] + [(0, 0)] * (x.ndim - 1)
    result = processes.gather(run(np.pad(batch, padding)))
    outs.append(result[: len(batch)])
  return np.concatenate(outs)


def run_tiles(
  run: Run, x: jax.Array, tile: int, in_scale: int, out_scale: int
) -> np.ndarray:
  """Runs the tiles of images one by one and blends the results.

  Args:
    run: function of `[B, rows, columns, C]`.
    x: images larger than a tile; sides shorter than a tile are not cut.
    tile: cells along a tile.
    in_scale: rows or columns of x per cell.
    out_scale: rows or columns of the result per cell.

  Returns:
    `f32[B, rows', columns', C']` on the host.
  """
  x, out = processes.gather(x), None
  sizes = [side // in_scale for side in x.shape[1:3]]
  tile_sides = [min(tile, size) for size in sizes]
  starts = [tile_starts(*pair) for pair in zip(sizes, tile_sides, strict=True)]
  weights = [
    blend_weights(at, side, out_scale)
    for at, side in zip(starts, tile_sides, strict=True)
  ]

  def region(corner, scale):
    return slice(None), *(
      slice(start * scale, (start + side) * scale)
      for start, side in zip(corner, tile_sides, strict=True)
    )

  for corner, (row, column) in zip(
    itertools.product(*starts), itertools.product(*weights), strict=True
  ):
    result = processes.gather(run(x[region(corner, in_scale)]))
    if out is None:
      sides = [size * out_scale for size in sizes]
      out = np.zeros((len(x), *sides, result.shape[-1]), np.float32)
    blended = result * (row[:, None] * column)[..., None]
    out[region(corner, out_scale)] += blended
  return out


def tile_starts(size: int, tile: int) -> list[int]:
  """First cells of evenly spread tiles; the last tile ends at `size`."""
  step = tile - max(tile // OVERLAP, 1)
  count = 1 + -(-(size - tile) // step)
  return [round(n * (size - tile) / max(count - 1, 1)) for n in range(count)]


def blend_weights(starts: list[int], tile: int, scale: int) -> np.ndarray:
  """Weights `f32[N, tile * scale]` of tiles, which sum to 1 at every place.

  They fall linearly to the border over the overlap with a neighbour.

  Args:
    starts: first cells of the tiles.
    tile: cells along a tile.
    scale: rows or columns per cell.
  """
  length = tile * scale
  place = np.arange(length) + 0.5
  weights = np.ones((len(starts), length))
  for n, (a, b) in enumerate(itertools.pairwise(starts)):
    shared = (a + tile - b) * scale
    weights[n] = np.minimum(weights[n], (length - place) / shared)
    weights[n + 1] = np.minimum(weights[n + 1], place / shared)
  total = np.zeros((starts[-1] + tile) * scale)
  for start, weight in zip(starts, weights, strict=True):
    total[start * scale :][:length] += weight
  for start, weight in zip(starts, weights, strict=True):
    weight /= total[start * scale :][:length]
  return weights.astype(np.float32)
