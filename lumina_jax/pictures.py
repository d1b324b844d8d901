"""Pictures to make, packed into the few fixed shapes that the sampler knows.

B rows, N samples a row, S text tokens a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lumina_jax import packing
from lumina_jax.network import Network
from lumina_jax.sampler import Request
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class Picture:
  """One picture to make.

  Attributes:
    grid: its layout.
    text: codes `i32[S, K]` of the prompt, from `Network.tokenize`.
    negative: codes of the negative prompt.
    seed: of its noise.
    number: among the pictures of one prompt; with the seed it fixes the noise.
    guidance_scale: 1 = none.
  """

  grid: Grid
  text: np.ndarray
  negative: np.ndarray
  seed: int
  number: int
  guidance_scale: float


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of pictures as one request.

  Attributes:
    request: for the sampler.
    rows: the pictures of each row, (number in the call, layout), in order.
  """

  request: Request
  rows: list[list[tuple[int, Grid]]]

  def cut(self, patches: np.ndarray) -> dict[int, np.ndarray]:
    """Patches `f32[B, L, P]` -> latents `f32[H, W, C]` by picture number."""
    latents = {}
    for row, values in zip(self.rows, patches, strict=True):
      start = 0
      for number, grid in row:
        stop = start + grid.num_tokens
        latents[number] = grid.detokenize(values[start:stop])
        start = stop
    return latents


def batches(
  pictures: Sequence[Picture],
  network: Network,
  ladder: Sequence[tuple[int, int, int]],
  row_count: int,
  times: jax.Array,
) -> Iterator[Batch]:
  """Packs pictures into rows, and rows into batches of one shape a rung.

  Args:
    pictures: each fits the last rung of the ladder.
    network: that will draw them.
    ladder: budgets (tokens, words, samples) of a row, smallest first; all rows
      take the first that fits the largest picture.
    row_count: B of every batch.
    times: grid of the solver.

  Yields:
    Batches that together hold every picture once.
  """
  sizes = [
    (p.grid.num_tokens, max(len(p.text), len(p.negative)), 1) for p in pictures
  ]
  largest = np.max(sizes, axis=0)
  fitting = (rung for rung in ladder if np.all(largest <= rung))
  rung = next(fitting, ladder[-1])
  rows = packing.first_fit(sizes, rung)
  guided = any(p.guidance_scale != 1 for p in pictures)
  while rows:
    taken, rows = rows[:row_count], rows[row_count:]
    taken += [[]] * (row_count - len(taken))
    chosen = [[pictures[i] for i in row] for row in taken]
    placed = [[(i, pictures[i].grid) for i in row] for row in taken]
    yield Batch(_request(chosen, network, rung, guided, times), placed)


def _request(
  rows: list[list[Picture]],
  network: Network,
  rung: tuple[int, int, int],
  guided: bool,
  times: jax.Array,
) -> Request:
  length, words, samples = rung
  model, width = network.model, network.code_width

  def layout(row):
    grids = [p.grid for p in row]
    blank = [np.zeros((g.num_tokens, model.patch_dim)) for g in grids]
    return packing.pack(
      grids, blank, length, model.patch_dim, model.position_axes
    )

  def each(field, dtype):
    out = np.zeros((len(rows), samples), dtype)
    for place, row in zip(out, rows, strict=True):
      place[: len(row)] = [getattr(p, field) for p in row]
    return out

  def condition(field):
    spelled = packing.stack(
      [
        packing.pack_text([getattr(p, field) for p in row], words, width)
        for row in rows
      ]
    )
    return spelled._replace(sample_ids=each("number", np.int32))

  return Request(
    tokens=packing.stack([layout(row) for row in rows]),
    condition=condition("text"),
    negative=condition("negative") if guided else None,
    seeds=each("seed", np.uint32),
    guidance_scale=each("guidance_scale", np.float32),
    times=times,
  )
