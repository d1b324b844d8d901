"""Requests packed into the few fixed shapes that the sampler compiles for.

B rows, L tokens, N samples a row, S text tokens a row, P patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lumina_jax import packing
from lumina_jax.model.network import Network
from lumina_jax.sampling.callbacks import TEXTS
from lumina_jax.sampling.extrapolation import extrapolation
from lumina_jax.sampling.inputs import Budget, make_inputs, pack_text
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.program import Inputs
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.sizes import SizeConfig
from lumina_jax.sampling.times import TimeGrid

WORDS = 64  # Without a ladder, text is rounded up to a multiple of it.


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
        f"new features of {longest} tokens do not fit a row of {self.words}; "
        "return shorter ones, or call with a prompt that is as long"
      )
    text = pack_text(rows, self.words, self.network)
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
    inputs = make_inputs(
      content, network, options, beyond, budget, guided, times
    )
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
