"""Requests: one for each sample, with every argument checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lumina_jax.files import numbers
from lumina_jax.sampling import arguments, overrides
from lumina_jax.sampling.call import Arguments
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.prompts import Encode
from lumina_jax.sampling.sizes import RULES
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class Request:
  """One sample to generate.

  Attributes:
    prompt: text, for messages.
    grid: layout of the latents.
    text: codes `i32[S, K]` of the prompt, or features `f32[S, E]`.
    negative: codes or features of the negative prompt.
    seed: of the noise.
    number: among the samples of one prompt; with the seed it fixes the noise.
    guidance_scale: 1 = none.
    latents: initial latents `f32[*shape, C]` in place of noise.
    initial: initial sample, or its latents once encoded; None = none.
    natural: layout at the size that training gave to such a prompt; None = the
      trained size of the network.
  """

  prompt: str
  grid: Grid
  text: np.ndarray
  negative: np.ndarray
  seed: int
  number: int
  guidance_scale: float
  latents: np.ndarray | None = None
  initial: np.ndarray | None = None
  natural: Grid | None = None


def make_requests(
  components: Components,
  parsed: Arguments,
  options: SamplingOptions,
  prompt: Any,
  encode: Encode,
) -> list[Request]:
  """Checks every argument of a call, then encodes the prompts.

  Args:
    components: network, medium, codec and sizes.
    parsed: arguments of the call.
    options: of the call.
    prompt: one or several.
    encode: prompts and negative prompts -> codes or features.

  Returns:
    The requests, in the order of the prompts.

  Raises:
    ValueError: naming the argument that does not fit.
  """
  call = parsed.call
  prompts = arguments.prompts(prompt)
  count = len(prompts)
  each = numbers.positive(parsed.each, components.medium.per_prompt)
  negatives = arguments.negative_prompts(call.negative_prompt, count)
  varied = overrides.per_sample(options, parsed.options, count)
  scales = varied["guidance_scale"]
  seeds = iter(arguments.seeds(call.seed, call.generator, count, each))
  initial = initial_samples(components, call.image, count)
  grids = make_grids(components, prompts, parsed.sizes, initial)
  natural = [natural_grid(components, text) for text in prompts]
  channels = (components.network.model.channels,)
  shapes = [grid.shape + channels for grid in grids for _ in range(each)]
  latents = iter(arguments.latents(call.latents, shapes))
  # Without guidance nothing reads negative prompts.
  guided = any(scale != 1 for scale in scales)
  encoded = encode(prompts, negatives if guided else None)
  return [
    Request(text, grid, *codes, *next(seeds), scale, next(latents), *rest)
    for text, grid, codes, scale, *rest in zip(
      prompts, grids, encoded, scales, initial, natural, strict=True
    )
    for _ in range(each)
  ]


def make_grids(
  components: Components,
  prompts: Sequence[str],
  requested: Mapping[str, Any],
  initial: Sequence[np.ndarray | None],
) -> list[Grid]:
  """The layout of each prompt's samples.

  Args:
    components: medium, network and sizes.
    prompts: a size rule may read sizes off them.
    requested: sizes by axis, each one, one for each prompt, or None.
    initial: initial samples `f32[*shape, C]`, whose sizes are then used.

  Raises:
    ValueError: naming a size that cannot be generated, or that differs from the
      initial sample's.
  """
  axes = [axis.argument for axis in components.medium.axes]
  columns = {axis: requested.get(axis) for axis in axes}
  rows = arguments.rows(columns, len(prompts))
  return [
    _grid(components, prompt, row if sample is None else _sizes_of(sample, row))
    for prompt, row, sample in zip(prompts, rows, initial, strict=True)
  ]


def natural_grid(components: Components, prompt: str) -> Grid | None:
  """The layout that training gave to such a prompt; None = one for all."""
  sizes, model = components.sizes, components.network.model
  return model.grid(*sizes.extents(prompt)) if RULES[sizes.rule] else None


def _grid(
  components: Components, prompt: str, requested: Mapping[str, Any]
) -> Grid:
  """The layout of one sample.

  Args:
    components: medium, network and sizes.
    prompt: a size rule may read the size off it.
    requested: size along each axis, by its argument; None = the default.

  Raises:
    ValueError: if no patches make up the size, or no row can hold it.
  """
  sizes, model = components.sizes, components.network.model
  shape = components.medium.shape(
    list(requested.values()),
    sizes.extents(prompt),
    components.factors,
    model.patch,
    sizes.rate,
  )
  grid = model.grid(*shape)
  if sizes.ladder and grid.num_tokens > (largest := sizes.ladder[-1][0]):
    values = [f"{k}={v}" for k, v in requested.items() if v is not None]
    raise ValueError(
      f"{', '.join(values) or f'the size of {prompt!r}'} takes "
      f"{grid.num_tokens} tokens; the largest row holds {largest}. Choose a "
      "smaller size, or add a budget to config.sizes.ladder"
    )
  return grid


def initial_samples(
  components: Components, image: Any, count: int
) -> list[np.ndarray | None]:
  """Initial samples `f32[*shape, C]` in [-1, 1], or None, for each prompt.

  Raises:
    ValueError: if a value does not fit, or the medium has none.
  """
  if image is None:
    return [None] * count
  medium = components.medium
  if medium.load is None:
    raise ValueError(
      f"image: this pipeline generates {medium.plural}, which cannot start "
      "from a sample yet; leave it out"
    )
  samples = medium.load(image, components.channels)
  if len(samples) == 1:
    return samples * count
  return arguments.per_prompt(samples, count, "image")


def _sizes_of(sample: np.ndarray, requested: Mapping[str, Any]) -> dict:
  """Sizes of an initial sample, which requested ones must equal."""
  own = dict(zip(requested, sample.shape, strict=False))
  for name, size in requested.items():
    if size is not None and numbers.whole(size, name) != own[name]:
      raise ValueError(
        f"{name}={size}, but image has {own[name]}: resize it, or leave {name} "
        "out"
      )
  return own
