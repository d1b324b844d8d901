"""Checks values of callers, and broadcasts them to one per prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lumina_jax.files import numbers


def prompts(prompt: Any, name: str = "prompt") -> list[str]:
  """One prompt or several, as a list.

  Raises:
    ValueError: if it is neither, the list is empty, or text is not Unicode.
  """
  texts = [prompt] if isinstance(prompt, str) else prompt
  if not isinstance(texts, Sequence) or not all(
    isinstance(text, str) for text in texts
  ):
    raise ValueError(f"{name} = {prompt!r}: must be a string or a list of them")
  if not texts:
    raise ValueError(f'{name} is empty; "" is an unconditional prompt')
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f"{name} {text!r} is not Unicode: {error}") from error
  return list(texts)


def negative_prompts(prompt: Any, count: int) -> list[str]:
  """One negative prompt for each prompt; None = "".

  Raises:
    ValueError: as `prompts`, or if their number differs.
  """
  name = "negative_prompt"
  texts = prompts("" if prompt is None else prompt, name)
  one = prompt is None or isinstance(prompt, str)
  return texts * count if one else per_prompt(texts, count, name)


def is_list(value: Any) -> bool:
  """Whether a value is a list, a tuple or an array with axes."""
  # Lists first: numpy finds no axes in lists of different lengths.
  return isinstance(value, (list, tuple)) or np.ndim(value) > 0


def per_prompt(value: Any, count: int, name: str) -> list[Any]:
  """Repeats a single value, or checks that there is one for each prompt."""
  if not is_list(value):
    return [value] * count
  values = list(value)
  if len(values) != count:
    raise ValueError(
      f"{name} has {len(values)} values for {count} prompts; pass one, or one "
      "for each"
    )
  return values


def rows(
  columns: Mapping[str, Any], count: int, prefix: str = ""
) -> list[dict[str, Any]]:
  """Arguments of each prompt, from values given once or once for each.

  Args:
    columns: values by name.
    count: number of prompts.
    prefix: of the names, for messages.
  """
  each = [per_prompt(v, count, f"{prefix}{k}") for k, v in columns.items()]
  return [
    dict(zip(columns, row, strict=True)) for row in zip(*each, strict=True)
  ]


def seeds(
  seed: Any, generator: Any, count: int, each: int = 1
) -> list[tuple[int, int]]:
  """(seed, number) of each sample, which fix its noise.

  Args:
    seed: one, or one for each prompt; None = 0. Samples of one prompt share its
      seed and are numbered.
    generator: replaces the seed, as in diffusers: an int, a numpy or torch
      generator, or a list of them, one for each prompt or for each sample. The
      noise is not that of torch.
    count: number of prompts.
    each: samples of each prompt.

  Raises:
    ValueError: if both are given, or a seed is out of range.
  """
  if seed is not None and generator is not None:
    raise ValueError(f"seed = {seed} and a generator: pass one of them")
  if generator is None:
    values = per_prompt(0 if seed is None else seed, count, "seed")
    return [(_checked_seed(x, "seed"), i) for x in values for i in range(each)]
  several = isinstance(generator, (list, tuple))
  found = [_seed_of(g) for g in (generator if several else [generator])]
  found = [_checked_seed(x, "generator") for x in found]
  if several and each > 1 and len(found) == count * each:
    return [(x, 0) for x in found]
  values = per_prompt(found if several else found[0], count, "generator")
  return [(x, i) for x in values for i in range(each)]


def _checked_seed(seed: Any, name: str) -> int:
  found = numbers.whole(seed, name)
  if not 0 <= found < 2**32:
    raise ValueError(f"{name} = {seed}: must be from 0 to 2**32 - 1")
  return found


def _seed_of(generator: Any) -> int:
  if isinstance(generator, (int, np.integer)):
    return generator
  if hasattr(generator, "initial_seed"):  # torch.Generator
    return int(generator.initial_seed()) % 2**32
  if isinstance(generator, np.random.Generator):
    return int(generator.integers(2**32))
  raise ValueError(
    f"generator = {generator!r}: must be an int or a numpy or torch generator"
  )


def _rows(values: Any, name: str) -> list[np.ndarray]:
  if not is_list(values):
    raise ValueError(f"{name} = {values!r}: must be an array or a list of them")
  return [numbers.array(row, name) for row in values]


def embeddings(
  embeds: Any, mask: Any, width: int, name: str
) -> list[np.ndarray]:
  """Text features of a caller, as a list of `f32[S_n, E]`.

  Args:
    embeds: `f32[N, S, E]`, or a list of `f32[S_n, E]`.
    mask: `[N, S]`, nonzero for features that count; None = all.
    width: E of the network.
    name: of the argument, for messages.

  Raises:
    ValueError: naming a shape that does not fit, or values that are not
      finite.
  """
  rows = _rows(embeds, name)
  masks = [None] * len(rows)
  if mask is not None:
    masks = _rows(mask, f"the mask of {name}")
    if len(masks) != len(rows):
      raise ValueError(f"{name} has {len(rows)} rows, its mask {len(masks)}")
  for number, (row, keep) in enumerate(zip(rows, masks, strict=True)):
    if row.ndim != 2 or row.shape[1] != width or not len(row):
      raise ValueError(
        f"{name}[{number}] has shape {row.shape}; this network takes "
        f"f32[S, {width}]"
      )
    if keep is not None:
      if keep.shape != row.shape[:1]:
        raise ValueError(
          f"the mask of {name}[{number}] has shape {keep.shape}; expected "
          f"{row.shape[:1]}"
        )
      rows[number] = row[keep != 0]
  return rows


def latents(
  values: Any, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray | None]:
  """Initial latents, one for each sample, or None for each.

  Args:
    values: `f32[N, *shape, C]`, or a list of `f32[*shape, C]`; None = noise.
    shapes: of the samples' latents.

  Raises:
    ValueError: if the number or a shape differs, or a value is not finite.
  """
  if values is None:
    return [None] * len(shapes)
  values = _rows(values, "latents")
  if len(values) != len(shapes):
    raise ValueError(
      f"latents has {len(values)} rows for {len(shapes)} samples"
    )
  for number, (value, shape) in enumerate(zip(values, shapes, strict=True)):
    if value.shape != shape:
      first = (*value.shape[1:], *value.shape[:1]) == shape
      hint = "; move the channels to the last axis" if first else ""
      raise ValueError(
        f"latents[{number}] has shape {value.shape}, its sample {shape}{hint}"
      )
  return values
