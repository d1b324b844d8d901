"""Checks values of callers, and broadcasts them to one per prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


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


def per_prompt(value: Any, count: int, name: str) -> list[Any]:
  """Repeats a single value, or checks that there is one for each prompt."""
  if value is None or isinstance(value, str) or np.ndim(value) == 0:
    return [value] * count
  values = list(value)
  if len(values) != count:
    raise ValueError(
      f"{name} has {len(values)} values for {count} prompts; pass one, or one "
      "for each"
    )
  return values


def number(value: Any, name: str) -> float:
  """A finite number.

  Raises:
    ValueError: naming any other value.
  """
  try:
    found = float(value)
  except (TypeError, ValueError):
    found = math.nan
  if not math.isfinite(found):
    raise ValueError(f"{name} = {value!r}: must be a finite number")
  return found


def whole(value: Any, name: str) -> int:
  """A whole number.

  Raises:
    ValueError: naming any other value.
  """
  found = number(value, name)
  if found != int(found):
    raise ValueError(f"{name} = {value!r}: must be a whole number")
  return int(found)


def positive(value: Any, name: str) -> int:
  """A whole number of at least 1.

  Raises:
    ValueError: naming any other value.
  """
  found = whole(value, name)
  if found < 1:
    raise ValueError(f"{name} = {value!r}: must be at least 1")
  return found


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
  if generator is not None:
    several = isinstance(generator, (list, tuple))
    found = [_seed_of(g) for g in (generator if several else [generator])]
    if several and each > 1 and len(found) == count * each:
      return [(_checked_seed(x), 0) for x in found]
    seed = found if several else found[0]
  values = per_prompt(0 if seed is None else seed, count, "seed")
  return [(_checked_seed(x), i) for x in values for i in range(each)]


def _checked_seed(seed: Any) -> int:
  found = whole(seed, "seed")
  if not 0 <= found < 2**32:
    raise ValueError(f"seed = {seed}: must be from 0 to 2**32 - 1")
  return found


def _seed_of(generator: Any) -> int:
  if isinstance(generator, (int, np.integer)):
    return int(generator)
  if hasattr(generator, "initial_seed"):  # torch.Generator
    return int(generator.initial_seed()) % 2**32
  if isinstance(generator, np.random.Generator):
    return int(generator.integers(2**32))
  raise ValueError(
    f"generator = {generator!r}: must be an int or a numpy or torch generator"
  )


def as_float32(x: Any, name: str) -> np.ndarray:
  """An array of numpy, JAX or torch, on any device, as float32.

  Raises:
    ValueError: if it holds no numbers.
  """
  if hasattr(x, "detach"):  # numpy cannot read every torch tensor.
    x = x.detach().float().cpu().numpy()
  try:
    return np.asarray(x, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} is not an array of numbers ({error})") from error


def _rows(values: Any, name: str) -> list[np.ndarray]:
  # Lists first: numpy finds no axes in arrays of different sizes.
  if not isinstance(values, (list, tuple)) and np.ndim(values) == 0:
    raise ValueError(f"{name} = {values!r}: must be an array or a list of them")
  return [as_float32(row, name) for row in values]


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
    ValueError: naming a shape that does not fit.
  """
  rows = _rows(embeds, name)
  if mask is not None and len(mask) != len(rows):
    raise ValueError(f"{name} has {len(rows)} rows, its mask {len(mask)}")
  for number, row in enumerate(rows):
    if row.ndim != 2 or row.shape[1] != width or not len(row):
      raise ValueError(
        f"{name}[{number}] has shape {row.shape}; this network takes "
        f"f32[S, {width}]"
      )
    if mask is not None:
      keep = as_float32(mask[number], f"the mask of {name}") != 0
      if keep.shape != row.shape[:1]:
        raise ValueError(
          f"the mask of {name}[{number}] has shape {keep.shape}; expected "
          f"{row.shape[:1]}"
        )
      rows[number] = row[keep]
  return rows


def latents(
  values: Any, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray | None]:
  """Initial latents, one for each sample, or None for each.

  Args:
    values: `f32[N, *shape, C]`, or a list of `f32[*shape, C]`; None = noise.
    shapes: of the samples' latents.

  Raises:
    ValueError: if the number or a shape differs.
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
