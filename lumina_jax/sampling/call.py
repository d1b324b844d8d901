"""The arguments of a call: declared once, with what the pipeline documents."""

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lumina_jax.files.suggest import did_you_mean
from lumina_jax.media import MEDIA, Medium
from lumina_jax.sampling import overrides
from lumina_jax.sampling.options import SamplingOptions, option


@dataclasses.dataclass(frozen=True)
class Call:
  """Arguments of a call beside its sizes and sampling options."""

  prompt: str | Sequence[str] | None = option(
    'One or several: text, or the number of a class; "" is unconditional.', None
  )
  negative_prompt: str | Sequence[str] | None = option(
    "What guidance steers away from; one, or one for each prompt.", ""
  )
  image: Any = option(
    "Initial image in place of pure noise, or one for each prompt: of PIL, "
    "`u8[H, W, C]`, or `f32[H, W, C]` in [0, 1].",
    None,
  )
  seed: int | Sequence[int] | None = option(
    "Fixes the noise; one, or one for each prompt; None = 0.", None
  )
  generator: Any = option(
    "Replaces the seed as in diffusers; see `arguments.seeds`.", None
  )
  latents: Any = option(
    "Initial latents in place of noise, `f32[N, *shape, C]` or a list.", None
  )
  prompt_embeds: Any = option(
    "Text features in place of prompts, `f32[N, S, E]` or a list.", None
  )
  prompt_attention_mask: Any = option(
    "`[N, S]`, nonzero for features that count; None = all.", None
  )
  negative_prompt_embeds: Any = option("As prompt_embeds.", None)
  negative_prompt_attention_mask: Any = option(
    "As prompt_attention_mask.", None
  )
  clean_caption: bool | None = option(
    "True removes web addresses, markup and the like from prompts, False only "
    "outer blanks and capitals; None = as the network was trained.",
    None,
  )
  max_sequence_length: int | None = option(
    "Tokens of a prompt that count.", None
  )
  compatibility: str | None = option(
    '"diffusers" samples as its LuminaPipeline does.', None
  )
  output_type: str | None = option(
    'Of images "pil", "np" for `f32[H, W, C]` in [0, 1], or "uint8"; of every '
    'medium "raw" for decoded values, mostly in [-1, 1], and "latent" for what '
    "the network generated. None = the first that the medium has.",
    None,
  )
  return_dict: bool = option("False returns a tuple.", True)
  callback: Callable[..., Any] | None = option(
    "Called with (step, t, x) after each step of each batch: the time, from 0 "
    "(noise) to 1 (data), of its first sample, and a list of latents "
    "`f32[*shape, C]`; may return such a list to continue with. The host then "
    "waits for each step.",
    None,
  )
  callback_on_step_end: Callable[..., Any] | None = option(
    "As in diffusers: called with (pipeline, step, t, tensors); may return a "
    "dict of changed tensors.",
    None,
  )
  callback_on_step_end_tensor_inputs: Sequence[str] = option(
    "Tensors that it receives: latents, prompt_embeds, "
    "negative_prompt_embeds; lists, one for each sample.",
    ("latents",),
  )
  progress: Callable[..., Any] | None = option(
    "Called with (samples done, samples in all) after each batch.", None
  )


class Arguments(NamedTuple):
  """Keyword arguments of a call by what they concern.

  Attributes:
    call: everything but those below.
    each: samples of each prompt.
    sizes: requested sizes by axis.
    options: sampling options.
  """

  call: Call
  each: Any
  sizes: Mapping[str, Any]
  options: Mapping[str, Any]


def parse(
  medium: Medium, keywords: Mapping[str, Any], options: type = SamplingOptions
) -> Arguments:
  """Sorts the keyword arguments of a call.

  Args:
    medium: of the samples.
    keywords: values by name.
    options: class of the sampling options.

  Raises:
    TypeError: for an argument that a call of this medium does not have.
    ValueError: for a value of another type.
  """
  fields = {field.name for field in dataclasses.fields(Call)}
  axes = [axis.argument for axis in medium.axes]
  named = overrides.names(options)
  for name in keywords:
    if name not in (*fields, *axes, *named, medium.per_prompt):
      raise TypeError(_unexpected(medium, name, [*fields, *axes, *named]))
  take = lambda names: {k: v for k, v in keywords.items() if k in names}  # noqa: E731
  each = keywords.get(medium.per_prompt)
  hints = typing.get_type_hints(Call)
  call = {
    name: _typed(hints[name], value, name)
    for name, value in take(fields).items()
    if value is not None
  }
  return Arguments(
    Call(**call), 1 if each is None else each, take(axes), take(named)
  )


def _typed(kind: Any, value: Any, name: str) -> Any:
  """Checks plain values and functions; the others are checked on use."""
  union = isinstance(kind, types.UnionType)
  members = {*(typing.get_args(kind) if union else [kind])} - {type(None)}
  if members <= {bool, int, str}:
    return overrides.convert(kind, value, name)
  if members == {Callable[..., Any]} and not callable(value):
    raise ValueError(f"{name} = {value!r}: must be a function")
  return value


def _unexpected(medium: Medium, name: str, known: Sequence[str]) -> str:
  elsewhere = [m for m in MEDIA.values() if name in _of_medium(m)]
  if not elsewhere:
    hint = did_you_mean(name, [*known, medium.per_prompt])
    hint = hint or "; help(LuminaPipeline.__call__) describes all"
    return f"unexpected argument {name!r}{hint}"
  return (
    f"unexpected argument {name!r}: this pipeline generates {medium.plural}, "
    f"with {', '.join(_of_medium(medium))}"
  )


def _of_medium(medium: Medium) -> dict[str, str]:
  """Arguments of a medium, described."""
  sizes = {
    axis.argument: f"{axis.help} One, or one for each prompt."
    for axis in medium.axes
  }
  return sizes | {medium.per_prompt: "Samples of each prompt."}


def documented(function: Callable[..., Any]) -> Callable[..., Any]:
  """Gives a function that takes **arguments their signature and docs."""
  described = {f.name: f.metadata["help"] for f in dataclasses.fields(Call)}
  for medium in MEDIA.values():
    described |= _of_medium(medium)
  for field in dataclasses.fields(SamplingOptions):
    described[field.name] = field.metadata["help"]
  defaults = {f.name: f.default for f in dataclasses.fields(Call)}
  keyword = inspect.Parameter.KEYWORD_ONLY
  own = inspect.signature(function)
  kept = [
    p
    for p in own.parameters.values()
    if p.kind != inspect.Parameter.VAR_KEYWORD
  ]
  added = [
    inspect.Parameter(name, keyword, default=defaults.get(name))
    for name in described
    if name not in own.parameters
  ]
  function.__signature__ = own.replace(parameters=[*kept, *added])
  wrap = textwrap.TextWrapper(78, initial_indent="  ", subsequent_indent="    ")
  lines = "\n".join(wrap.fill(f"{k}: {v}") for k, v in described.items())
  head, _, tail = inspect.cleandoc(function.__doc__).partition("\n\nReturns:")
  function.__doc__ = f"{head}\n\nArgs:\n{lines}\n\nReturns:{tail}"
  return function
