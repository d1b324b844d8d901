"""Requests packed into the few fixed shapes that the sampler compiles for.

B rows, L tokens, N samples a row, S text tokens a row, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lumina_jax import packing
from lumina_jax.backbone import ModelConfig
from lumina_jax.flow.guidance import Guidance
from lumina_jax.model.network import Network
from lumina_jax.sampling.callbacks import TEXTS
from lumina_jax.sampling.extrapolation import Extrapolation, extrapolation
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.program import Inputs
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.sizes import SizeConfig
from lumina_jax.sampling.times import TimeGrid
from lumina_jax.tokens import Condition

WORDS = 64  # Without a ladder, text is rounded up to a multiple of it.

Budget = tuple[int, int, int]  # (tokens, words, samples) of a row


class Place(NamedTuple):
  """Where a sample lies.

  Attributes:
    number: of the sample in the call.
    row: its row.
    slot: its place among the samples of the row.
    start: its first token.
    stop: the token after its last.
    request: the sample.
  """

  number: int
  row: int
  slot: int
  start: int
  stop: int
  request: Request


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of samples as inputs of the sampler.

  Attributes:
    inputs: for the sampler.
    places: of the samples.
    network: that reads the text.
    words: S of a row.
  """

  inputs: Inputs
  places: list[Place]
  network: Network
  words: int

  def unpack(self, patches: np.ndarray) -> dict[int, np.ndarray]:
    """Patches `f32[B, L, P]` -> latents `f32[*shape, C]` by sample number."""
    return {
      p.number: p.request.grid.detokenize(patches[p.row, p.start : p.stop])
      for p in self.places
    }

  def pack(self, latents: Mapping[int, np.ndarray]) -> np.ndarray:
    """The inverse of `unpack`; zero on padding."""
    patches = np.zeros_like(self.inputs.tokens.patches, np.float32)
    for p in self.places:
      tokens = p.request.grid.tokenize(latents[p.number])
      patches[p.row, p.start : p.stop] = tokens
    return patches

  def per_sample(self, values: np.ndarray) -> dict[int, Any]:
    """Values of samples `[B, N]` by sample number."""
    values = np.asarray(values)
    return {p.number: values[p.row, p.slot].item() for p in self.places}

  def texts(self) -> dict[str, dict[int, np.ndarray]]:
    """Features `f32[S_n, E]` of each sample by the name of the argument."""
    found = {}
    for name, field in TEXTS.items():
      condition = getattr(self.inputs, field)
      if condition is not None:
        found[name] = {
          p.number: condition.text[p.row][
            condition.text_segments[p.row] == p.slot + 1
          ]
          for p in self.places
        }
    return found

  def with_text(self, field: str, features: Mapping[int, np.ndarray]) -> Batch:
    """The batch with other features of its prompts.

    Args:
      field: "condition" or "negative".
      features: `f32[S_n, E]` by sample number.

    Raises:
      ValueError: if they are longer than a row allows.
    """
    rows: list[list[np.ndarray]] = [[] for _ in self.inputs.seeds]
    for p in self.places:
      rows[p.row].append(features[p.number])
    longest = max(sum(map(len, row)) for row in rows)
    if longest > self.words:
      raise ValueError(
        f"new features of {longest} tokens do not fit a row of {self.words}"
      )
    text = _pack_text(rows, self.words, self.network)
    old = getattr(self.inputs, field)
    new = old._replace(text=text.text, text_segments=text.text_segments)
    inputs = self.inputs._replace(**{field: new})
    return dataclasses.replace(self, inputs=inputs)


def make_batches(
  requests: Sequence[Request],
  network: Network,
  options: SamplingOptions,
  sizes: SizeConfig,
  times: TimeGrid,
  divisors: tuple[int, int] = (1, 1),
) -> Iterator[Batch]:
  """Packs requests into rows, and rows into batches of one shape.

  Args:
    requests: each fits the largest budget of the ladder, if there is one.
    network: reads the batches.
    options: guidance and extrapolation.
    sizes: ladder, rows and trained size.
    times: time grid of the solver.
    divisors: of the number of rows and of their tokens, for a mesh.

  Yields:
    Batches that together hold every request once.
  """
  requests = _single_branch(requests, options)
  needs = [
    (r.grid.num_tokens, max(len(r.text), len(r.negative)), 1) for r in requests
  ]
  tokens, *rest = _budget(np.max(needs, axis=0), sizes.ladder)
  count, tokens = (
    -(-size // by) * by
    for size, by in zip((sizes.rows, tokens), divisors, strict=True)
  )
  budget = tokens, *rest
  rows = packing.first_fit(needs, budget)
  guided = any(r.guidance_scale != 1 for r in requests)
  beyond = extrapolation(options, sizes)
  while rows:
    numbers, rows = rows[:count], rows[count:]
    numbers += [[]] * (count - len(numbers))
    content = [[requests[i] for i in row] for row in numbers]
    inputs = _inputs(content, network, options, beyond, budget, guided, times)
    batch = Batch(inputs, _places(numbers, requests), network, budget[1])
    for field in ("latents", "initial"):
      values = {i: getattr(r, field) for i, r in enumerate(requests)}
      if values[0] is not None:
        inputs = inputs._replace(**{field: batch.pack(values)})
    yield dataclasses.replace(batch, inputs=inputs)


def _single_branch(
  requests: Sequence[Request], options: SamplingOptions
) -> Sequence[Request]:
  """At guidance 0 only the negative prompt counts: one branch serves."""
  everywhere = options.guidance_interval == (0, 1) and not (
    options.guidance_channels or options.guidance_renorm
  )
  if not everywhere or any(r.guidance_scale != 0 for r in requests):
    return requests
  return [
    dataclasses.replace(r, text=r.negative, guidance_scale=1.0)
    for r in requests
  ]


def _budget(largest: np.ndarray, ladder: Sequence[Budget]) -> Budget:
  if not ladder:
    tokens, words, _ = largest.tolist()
    # A class is one word, and so is an empty prompt.
    few = 1 if words == 1 else -(-words // WORDS) * WORDS
    return packing.ladder(tokens), few, 1
  fitting = (budget for budget in ladder if np.all(largest <= budget))
  return next(fitting, ladder[-1])


def _places(
  numbers: list[list[int]], requests: Sequence[Request]
) -> list[Place]:
  places = []
  for row, samples in enumerate(numbers):
    start = 0
    for slot, number in enumerate(samples):
      stop = start + requests[number].grid.num_tokens
      places.append(Place(number, row, slot, start, stop, requests[number]))
      start = stop
  return places


def _inputs(
  rows: list[list[Request]],
  network: Network,
  options: SamplingOptions,
  beyond: Extrapolation,
  budget: Budget,
  guided: bool,
  times: TimeGrid,
) -> Inputs:
  length, words, samples = budget
  model = network.model
  each = functools.partial(_per_slot, rows, samples)

  def of_size(function):
    return each(lambda r: function(r.grid, r.natural), np.float32, 1)

  scale = positions = None
  if beyond.active:
    scale = of_size(beyond.attention_scale)
  if beyond.rule != "none":
    trained = of_size(beyond.trained_extent)
    positions = beyond.positions(of_size(beyond.stretch), trained)
  numbers = each(lambda r: r.number, np.int32)

  def condition(field):
    texts = [[getattr(r, field) for r in row] for row in rows]
    packed = _pack_text(texts, words, network)
    return packed._replace(sample_ids=numbers, attention_scale=scale)

  return Inputs(
    tokens=packing.stack([_layout(row, length, model) for row in rows]),
    condition=condition("text"),
    negative=condition("negative") if guided else None,
    seeds=each(lambda r: r.seed, np.uint32),
    guidance=_guidance(model, options, each),
    times=_times(rows, samples, times),
    positions=positions,
  )


def _per_slot(
  rows: list[list[Request]],
  samples: int,
  value: Callable[[Request], Any],
  dtype: Any,
  empty: Any = 0,
) -> np.ndarray:
  """A value of each sample, `[B, N]`; `empty` where there is no sample."""
  out = np.full((len(rows), samples), empty, dtype)
  for slots, row in zip(out, rows, strict=True):
    slots[: len(row)] = [value(r) for r in row]
  return out


def _layout(row: list[Request], length: int, model: ModelConfig):
  grids = [r.grid for r in row]
  blank = [np.zeros((g.num_tokens, model.patch_dim)) for g in grids]
  return packing.pack(
    grids, blank, length, model.patch_dim, model.position_axes
  )


def _pack_text(
  rows: list[list[np.ndarray]], words: int, network: Network
) -> Condition:
  dtype = np.float32 if network.frozen_text else np.int32
  width = network.code_width
  return packing.stack(
    [packing.pack_text(row, words, width, dtype) for row in rows]
  )


def _guidance(model: ModelConfig, options: SamplingOptions, each) -> Guidance:
  start, stop = options.guidance_interval
  always = (start, stop) == (0, 1)
  constant = functools.partial(each, dtype=np.float32, empty=1)
  return Guidance(
    # Empty slots have scale 1, so that they never need guidance.
    scale=constant(lambda r: r.guidance_scale),
    start=None if always else constant(lambda r: start),
    stop=None if always else constant(lambda r: stop),
    renorm=constant(lambda r: options.guidance_renorm or np.inf),
    channels=guided_values(model, options.guidance_channels),
  )


def _times(
  rows: list[list[Request]], samples: int, times: TimeGrid
) -> np.ndarray:
  """`f32[steps + 1, B, N]`; empty slots stay at the end."""
  for_tokens = functools.cache(times.for_tokens)
  out = np.ones((times.steps + 1, len(rows), samples), np.float32)
  for b, row in enumerate(rows):
    for n, request in enumerate(row):
      out[:, b, n] = for_tokens(request.grid.num_tokens)
  return out


def guided_values(model: ModelConfig, channels: int) -> np.ndarray:
  """`f32[P]`: 1 for values of a patch in the first channels; 0 = all."""
  channel = np.arange(model.patch_dim) % model.channels
  return (channel < (channels or model.channels)).astype(np.float32)
