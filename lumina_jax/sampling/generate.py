"""generate: prompts and components in, samples out."""

from typing import Any

import numpy as np

from lumina_jax.sampling import (
  arguments,
  callbacks,
  overrides,
  prompts,
  request,
)
from lumina_jax.sampling import call as calls
from lumina_jax.sampling.call import Call
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.output import LATENT, Output, converter
from lumina_jax.sampling.presets import preset
from lumina_jax.sampling.prompts import Encode
from lumina_jax.sampling.run import run
from lumina_jax.sampling.times import time_grid


def generate(
  components: Components,
  prompt: Any = None,
  *,
  pipeline: Any = None,
  **keywords: Any,
) -> Output | tuple[list[Any]]:
  """Generates samples; see `LuminaPipeline.__call__`.

  Args:
    components: everything that generates.
    prompt: one or several.
    pipeline: that callbacks receive.
    **keywords: fields of `Call` and `SamplingOptions`, sizes of the medium, and
      the number of samples of each prompt.

  Raises:
    TypeError: for an unknown argument.
    ValueError: naming the argument that does not fit.
    FloatingPointError: if a sample is not finite.
  """
  medium, kind = components.medium, type(components.options)
  parsed = calls.parse(medium, keywords | {"prompt": prompt}, kind)
  call = parsed.call
  output_type, convert = converter(
    medium, call.output_type, components.codec is not None
  )
  on_step = callbacks.on_step(pipeline, components.network, call)
  components = preset(call.compatibility, components)
  options = overrides.override(components.options, parsed.options)
  times = time_grid(options, _strength(options, parsed))
  texts, encode = _encoder(components, call)
  requests = request.make_requests(components, parsed, options, texts, encode)
  results = run(
    components,
    requests,
    options,
    times,
    on_step,
    call.progress,
    decode=output_type != LATENT,
  )
  samples = [convert(result.sample) for result in results]
  if not call.return_dict:
    return (samples,)
  return Output(samples, medium, [result.evaluations for result in results])


def check_call(components: Components, prompt: Any, **keywords: Any) -> None:
  """Checks sizes and prompts of a call without encoding anything.

  Raises:
    TypeError, ValueError: as `generate`.
  """
  medium, kind = components.medium, type(components.options)
  parsed = calls.parse(medium, keywords, kind)
  texts = arguments.prompts(prompt)
  initial = request.initial_samples(components, parsed.call.image, len(texts))
  request.make_grids(components, texts, parsed.sizes, initial)
  if not components.network.frozen_text:
    for text in texts:
      components.network.tokenize(text)


def encode_prompts(
  components: Components,
  prompt: Any,
  negative_prompt: Any = "",
  **keywords: Any,
) -> tuple[np.ndarray, ...]:
  """Features of prompts; see `LuminaPipeline.encode_prompt`."""
  if not components.network.frozen_text:
    raise ValueError(
      "this network encodes prompts itself; pass prompts to calls as they are"
    )
  call = calls.parse(components.medium, keywords).call
  texts = arguments.prompts(prompt)
  negatives = arguments.negative_prompts(negative_prompt, len(texts))
  encoder = prompts.prompt_encoder(preset(call.compatibility, components), call)
  return prompts.padded(encoder(texts, negatives))


def _strength(options: SamplingOptions, parsed: calls.Arguments) -> float:
  """The denoising strength; 1 without an initial sample."""
  if parsed.call.image is not None:
    return options.strength
  if parsed.options.get("strength") is not None:
    raise ValueError(
      f"strength = {options.strength} has no effect without image, the sample "
      "to start from"
    )
  return 1.0


def _encoder(components: Components, call: Call) -> tuple[Any, Encode]:
  """Prompts and their encoder, or embeddings in place of both.

  Raises:
    ValueError: if prompts are given twice.
  """
  encoder = prompts.prompt_encoder(components, call)
  for name, other in (
    ("prompt_attention_mask", "prompt_embeds"),
    ("negative_prompt_attention_mask", "negative_prompt_embeds"),
    ("negative_prompt_embeds", "prompt_embeds"),
  ):
    if getattr(call, name) is not None and getattr(call, other) is None:
      raise ValueError(f"{name} without {other}")
  if call.prompt_embeds is None:
    return call.prompt, encoder
  if call.prompt is not None:
    raise ValueError("prompt and prompt_embeds: pass one of them")
  if call.negative_prompt_embeds is not None and call.negative_prompt:
    raise ValueError(
      "negative_prompt and negative_prompt_embeds: pass one of them"
    )
  count, encode = prompts.given_embeddings(encoder, call)
  return [""] * count, encode
