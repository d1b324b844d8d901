"""What a caller of the pipeline may pass, checked where it comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


def prompts(prompt: Any, name: str = "prompt") -> list[str]:
  """One prompt or several, as a list.

  Raises:
    ValueError: if it is neither, there is none, or it is no text that could be
      written down.
  """
  texts = [prompt] if isinstance(prompt, str) else prompt
  if not isinstance(texts, Sequence) or not all(
    isinstance(text, str) for text in texts
  ):
    raise ValueError(f"{name} {prompt!r}: a string or a list of strings")
  if not texts:
    raise ValueError(f'no {name}; use "" for an unconditional picture')
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"{name} {text!r} is no Unicode text: {error}"
      ) from error
  return list(texts)


def one_each(value: Any, count: int, name: str) -> list[Any]:
  """Repeats a single value, or checks that there is one per prompt."""
  if value is None or isinstance(value, str) or np.ndim(value) == 0:
    return [value] * count
  values = list(value)
  if len(values) != count:
    raise ValueError(
      f"{name} has {len(values)} values for {count} prompts; give one, or one "
      "for each"
    )
  return values


def numbers(value: Any, count: int, name: str) -> list[float]:
  """One finite number, or one for each prompt, as a list.

  Raises:
    ValueError: if there are others.
  """
  return [number(x, name) for x in one_each(value, count, name)]


def number(value: Any, name: str) -> float:
  """A finite number.

  Raises:
    ValueError: naming what it is instead.
  """
  try:
    found = float(value)
  except (TypeError, ValueError):
    found = math.nan
  if not math.isfinite(found):
    raise ValueError(f"{name} = {value!r}: a finite number")
  return found


def whole(value: Any, name: str) -> int:
  """A whole number.

  Raises:
    ValueError: naming what it is instead.
  """
  found = number(value, name)
  if found != int(found):
    raise ValueError(f"{name} = {value!r}: a whole number")
  return int(found)


def interval(value: Any, name: str) -> tuple[float, float]:
  """Two finite numbers.

  Raises:
    ValueError: naming what it is instead.
  """
  found = value if isinstance(value, Sequence) else np.ravel(value)
  if len(found) != 2 or isinstance(found, str):
    raise ValueError(f"{name} = {value!r}: two numbers, as (0.0, 0.5)")
  first, last = (number(x, name) for x in found)
  return first, last


def seeds(
  seed: Any, generator: Any, count: int, each: int = 1
) -> list[tuple[int, int]]:
  """What fixes the noise of each picture: a seed, and a number beside it.

  Args:
    seed: one, or one for each prompt; None = 0. Pictures of one prompt are
      numbered.
    generator: in its place, as in diffusers: a whole number, numpy's or torch's
      generator, or a list of them, one for each prompt or for each picture. Its
      pictures are not those of torch.
    count: of prompts.
    each: pictures of a prompt.

  Raises:
    ValueError: if both are given, or one is out of range.
  """
  if seed is not None and generator is not None:
    raise ValueError(f"seed = {seed} and a generator: give one of them")
  if generator is not None:
    several = isinstance(generator, (list, tuple))
    of = [_seed(g) for g in (generator if several else [generator])]
    seed = of if several else of[0]
    if several and each > 1 and len(of) == count * each:
      return [(_checked(x), 0) for x in of]
  found = one_each(0 if seed is None else seed, count, "seed")
  return [(_checked(x), i) for x in found for i in range(each)]


def _checked(seed: Any) -> int:
  found = whole(seed, "seed")
  if not 0 <= found < 2**32:
    raise ValueError(f"seed = {seed}: a whole number from 0, below 2**32")
  return found


def _seed(generator: Any) -> int:
  if isinstance(generator, (int, np.integer)):
    return int(generator)
  if hasattr(generator, "initial_seed"):  # torch.Generator
    return int(generator.initial_seed()) % 2**32
  if isinstance(generator, np.random.Generator):
    return int(generator.integers(2**32))
  raise ValueError(
    f"generator {generator!r}: a number, torch's or numpy's generator"
  )


class Start(NamedTuple):
  """What a solve begins with.

  Attributes:
    seed: of the noise, one or one for each prompt; None = 0.
    generator: in place of a seed, as in diffusers.
    latents: in place of noise, `f32[N, H, W, C]` or a list of `f32[H, W, C]`.
    image: a picture that it begins with a part of, or one for each prompt.
  """

  seed: Any = None
  generator: Any = None
  latents: Any = None
  image: Any = None


def as_float32(x: Any, name: str) -> np.ndarray:
  """Numbers of numpy, JAX or torch, of whatever device and type.

  Raises:
    ValueError: if they are none.
  """
  if hasattr(x, "detach"):  # numpy cannot read all of torch's.
    x = x.detach().float().cpu().numpy()
  try:
    return np.asarray(x, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: no array of numbers ({error})") from error


def _rows(values: Any, name: str) -> list[np.ndarray]:
  # A list first: numpy cannot tell the axes of arrays of unlike sizes.
  if not isinstance(values, (list, tuple)) and np.ndim(values) == 0:
    raise ValueError(f"{name} = {values!r}: an array, or a list of arrays")
  return [as_float32(row, name) for row in values]


def features(embeds: Any, mask: Any, width: int, name: str) -> list[np.ndarray]:
  """Features that the caller brings: a list of `f32[S_n, E]`.

  Args:
    embeds: `f32[N, S, E]`, or a list of `f32[S_n, E]`.
    mask: `[N, S]`, which of them count; None = all.
    width: E that the network takes.
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
          f"the mask of {name}[{number}] has shape {keep.shape}; "
          f"expected {row.shape[:1]}"
        )
      rows[number] = row[keep]
  return rows


def latents(
  values: Any, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray | None]:
  """Latents to begin with, one for each picture, or None for each.

  Args:
    values: `f32[N, H, W, C]`, or a list of `f32[H, W, C]`; None = noise.
    shapes: that the pictures need.

  Raises:
    ValueError: if one has another shape.
  """
  if values is None:
    return [None] * len(shapes)
  values = _rows(values, "latents")
  if len(values) != len(shapes):
    raise ValueError(f"latents: {len(values)} for {len(shapes)} pictures")
  for number, (value, shape) in enumerate(zip(values, shapes, strict=True)):
    if value.shape != shape:
      first = value.ndim == 3 and (*value.shape[1:], value.shape[0]) == shape
      hint = "; channels come last here: transpose(1, 2, 0)" if first else ""
      raise ValueError(
        f"latents[{number}] has shape {value.shape}, the picture {shape}{hint}"
      )
  return values
