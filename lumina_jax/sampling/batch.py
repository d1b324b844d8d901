"""Pictures to make, packed into the few fixed shapes that the sampler knows.

B rows, N samples a row, S text tokens a row, C channels, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lumina_jax import packing
from lumina_jax.backbone import ModelConfig
from lumina_jax.flow.guidance import Guidance
from lumina_jax.model.network import Network
from lumina_jax.sampling.program import Request, SamplingConfig
from lumina_jax.sampling.times import TimeGrid
from lumina_jax.tokens import Grid

WORDS = 64  # Text of rows without a ladder is rounded up to a multiple of it.


@dataclasses.dataclass(frozen=True)
class Picture:
  """One picture to make.

  Attributes:
    prompt: what was asked, for messages.
    grid: its layout.
    text: codes `i32[S, K]` of the prompt, from `Network.tokenize`, or features
      `f32[S, E]` of a frozen text encoder.
    negative: of the negative prompt.
    seed: of its noise.
    number: among the pictures of one prompt; with the seed it fixes the noise.
    guidance_scale: 1 = none.
    start: latents `f32[H, W, C]` in place of the noise.
    image: what the solve begins with a part of, `f32[H, W, C]` in [-1, 1], or
      its latents once encoded; None = with noise alone.
    natural: layout at the size that the network was trained to draw it at; None
      = the same for all, see `Extrapolation`.
  """

  prompt: str
  grid: Grid
  text: np.ndarray
  negative: np.ndarray
  seed: int
  number: int
  guidance_scale: float
  start: np.ndarray | None = None
  image: np.ndarray | None = None
  natural: Grid | None = None


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
    return {
      number: grid.detokenize(patches[row, start:stop])
      for row, start, stop, number, grid in self._places()
    }

  def paste(self, latents: dict[int, np.ndarray]) -> np.ndarray:
    """The inverse of `cut`, zero on padding."""
    patches = np.zeros_like(self.request.tokens.patches, np.float32)
    for row, start, stop, number, grid in self._places():
      patches[row, start:stop] = grid.tokenize(latents[number])
    return patches

  def each(self, values: np.ndarray) -> dict[int, Any]:
    """Values of samples `[B, N]` by picture number."""
    values = np.asarray(values)
    return {
      number: values[b, n].item()
      for b, row in enumerate(self.rows)
      for n, (number, _) in enumerate(row)
    }

  def _places(self) -> Iterator[tuple[int, int, int, int, Grid]]:
    for row, pictures in enumerate(self.rows):
      start = 0
      for number, grid in pictures:
        stop = start + grid.num_tokens
        yield row, start, stop, number, grid
        start = stop


def batches(
  pictures: Sequence[Picture],
  network: Network,
  sampling: SamplingConfig,
  times: TimeGrid,
  divisors: tuple[int, int] = (1, 1),
) -> Iterator[Batch]:
  """Packs pictures into rows, and rows into batches of one shape a rung.

  Args:
    pictures: each fits the last rung of the ladder, if there is one.
    network: that will draw them.
    sampling: its ladder, rows, guided channels and rule beyond trained sizes.
    times: grid of the solver.
    divisors: of the number of rows and of their tokens, for a mesh.

  Yields:
    Batches that together hold every picture once.
  """
  pictures = _one_branch(pictures, sampling)
  sizes = [
    (p.grid.num_tokens, max(len(p.text), len(p.negative)), 1) for p in pictures
  ]
  tokens, *rest = _rung(np.max(sizes, axis=0), sampling.ladder)
  count, tokens = (
    -(-size // by) * by
    for size, by in zip((sampling.rows, tokens), divisors, strict=True)
  )
  rung = tokens, *rest
  rows = packing.first_fit(sizes, rung)
  guided = any(p.guidance_scale != 1 for p in pictures)
  while rows:
    taken, rows = rows[:count], rows[count:]
    taken += [[]] * (count - len(taken))
    chosen = [[pictures[i] for i in row] for row in taken]
    placed = [[(i, pictures[i].grid) for i in row] for row in taken]
    request = _request(chosen, network, sampling, rung, guided, times)
    batch = Batch(request, placed)
    for name in ("start", "image"):
      given = {i: getattr(p, name) for i, p in enumerate(pictures)}
      if given[0] is not None:
        request = request._replace(**{name: batch.paste(given)})
    yield Batch(request, placed)


def _one_branch(
  pictures: Sequence[Picture], sampling: SamplingConfig
) -> Sequence[Picture]:
  """At guidance 0 the negative prompt alone says what is drawn."""
  all_of_it = sampling.guidance_interval == (0, 1) and not (
    sampling.guidance_channels or sampling.guidance_renorm
  )
  if not all_of_it or any(p.guidance_scale != 0 for p in pictures):
    return pictures
  return [
    dataclasses.replace(p, text=p.negative, guidance_scale=1.0)
    for p in pictures
  ]


def _rung(
  largest: np.ndarray, ladder: Sequence[tuple[int, int, int]]
) -> tuple[int, int, int]:
  if not ladder:
    tokens, words, _ = largest.tolist()
    # A class is one word, and so is an empty prompt.
    few = 1 if words == 1 else -(-words // WORDS) * WORDS
    return packing.ladder(tokens), few, 1
  fitting = (rung for rung in ladder if np.all(largest <= rung))
  return next(fitting, ladder[-1])


def _request(
  rows: list[list[Picture]],
  network: Network,
  sampling: SamplingConfig,
  rung: tuple[int, int, int],
  guided: bool,
  times: TimeGrid,
) -> Request:
  length, words, samples = rung
  model, width = network.model, network.code_width
  dtype = np.float32 if network.frozen_text else np.int32

  def layout(row):
    grids = [p.grid for p in row]
    blank = [np.zeros((g.num_tokens, model.patch_dim)) for g in grids]
    return packing.pack(
      grids, blank, length, model.patch_dim, model.position_axes
    )

  def each(value, dtype, otherwise=0):
    out = np.full((len(rows), samples), otherwise, dtype)
    for place, row in zip(out, rows, strict=True):
      place[: len(row)] = [value(p) for p in row]
    return out

  def of_size(function):
    return each(lambda p: function(p.grid, p.natural), np.float32, 1)

  scale, positions, beyond = None, None, sampling.beyond
  if beyond and (beyond.rule != "none" or beyond.proportional):
    scale = of_size(beyond.attention_scale)
  if beyond and beyond.rule != "none":
    stretch, trained = of_size(beyond.stretch), of_size(beyond.trained)
    positions = beyond.positions(stretch, trained)

  def condition(field):
    texts = [[getattr(p, field) for p in row] for row in rows]
    spelled = packing.stack(
      [packing.pack_text(row, words, width, dtype) for row in texts]
    )
    numbers = each(lambda p: p.number, np.int32)
    return spelled._replace(sample_ids=numbers, attention_scale=scale)

  return Request(
    tokens=packing.stack([layout(row) for row in rows]),
    condition=condition("text"),
    negative=condition("negative") if guided else None,
    seeds=each(lambda p: p.seed, np.uint32),
    guidance=_guidance(model, sampling, each),
    times=_times(rows, samples, times),
    positions=positions,
  )


def _guidance(model, sampling, each) -> Guidance:
  start, stop = sampling.guidance_interval
  always = (start, stop) == (0, 1)
  constant = functools.partial(each, dtype=np.float32, otherwise=1)
  return Guidance(
    # Of slots without a picture 1, so that they never ask for guidance.
    scale=constant(lambda p: p.guidance_scale),
    start=None if always else constant(lambda p: start),
    stop=None if always else constant(lambda p: stop),
    renorm=constant(lambda p: sampling.guidance_renorm or np.inf),
    channels=guided_values(model, sampling.guidance_channels),
  )


def _times(
  rows: list[list[Picture]], samples: int, times: TimeGrid
) -> np.ndarray:
  """`f32[steps + 1, B, N]`; slots without a picture stay at its end."""
  of = functools.cache(times.of)
  found = np.ones((times.steps + 1, len(rows), samples), np.float32)
  for b, row in enumerate(rows):
    for n, picture in enumerate(row):
      found[:, b, n] = of(picture.grid.num_tokens)
  return found


def guided_values(model: ModelConfig, channels: int) -> Any:
  """`f32[P]`: 1 for values of a patch in the first channels, 0 = in all."""
  channel = np.arange(model.patch_dim) % model.channels
  return (channel < (channels or model.channels)).astype(np.float32)
