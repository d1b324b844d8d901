"""Inputs of the compiled sampler, from rows of requests.

B rows, N samples a row, P patch.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lumina_jax import packing
from lumina_jax.backbone import ModelConfig
from lumina_jax.flow.guidance import Guidance
from lumina_jax.model.network import Network
from lumina_jax.sampling.extrapolation import Extrapolation
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.program import Inputs
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.times import TimeGrid
from lumina_jax.tokens import Condition, Tokens

Budget = tuple[int, int, int]  # (tokens, words, samples) of a row


def make_inputs(
  rows: list[list[Request]],
  network: Network,
  options: SamplingOptions,
  beyond: Extrapolation,
  budget: Budget,
  guided: bool,
  times: TimeGrid,
) -> Inputs:
  """Inputs of the sampler for rows of requests.

  Args:
    rows: requests of each row.
    network: reads the inputs.
    options: guidance.
    beyond: extrapolation.
    budget: (tokens, words, samples) of a row.
    guided: whether to run the unconditional branch too.
    times: time grid of the solver.
  """
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
    packed = pack_text(texts, words, network)
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


def _layout(row: list[Request], length: int, model: ModelConfig) -> Tokens:
  grids = [r.grid for r in row]
  blank = [np.zeros((g.num_tokens, model.patch_dim)) for g in grids]
  return packing.pack(
    grids, blank, length, model.patch_dim, model.position_axes
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


def pack_text(
  rows: list[list[np.ndarray]], words: int, network: Network
) -> Condition:
  """Codes or features of each row's samples as one condition."""
  dtype = np.float32 if network.frozen_text else np.int32
  width = network.code_width
  return packing.stack(
    [packing.pack_text(row, words, width, dtype) for row in rows]
  )
