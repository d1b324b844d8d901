"""The picture that a call begins with, and how much of it is drawn anew."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from lumina_jax.media import image as image_file
from lumina_jax.sampling import arguments as inputs

STRENGTH = 0.6  # Of a call that names a picture and no strength.


def strength(value: Any, image: Any) -> float:
  """How much of a picture is drawn anew; 1 without one.

  Raises:
    ValueError: if it is none, or there is no picture.
  """
  if image is None:
    if value is not None:
      raise ValueError(
        f"strength = {value!r} without image: it says how much of a picture is "
        "drawn anew"
      )
    return 1.0
  found = STRENGTH if value is None else inputs.number(value, "strength")
  if not 0 < found <= 1:
    raise ValueError(
      f"strength = {value!r}: above 0 (the picture as it is) and at most 1 "
      "(all anew)"
    )
  return found


def images(image: Any, count: int, channels: int) -> list[np.ndarray | None]:
  """Pictures `f32[H, W, C]` in [-1, 1], one for each prompt, or None for each.

  Args:
    image: a picture of PIL, `u8[H, W, C]`, or `f32[H, W, C]` in [0, 1], as
      calls return them; or one for each prompt.
    count: of prompts.
    channels: C that the pipeline draws: 1 = grey, 3 = colours.

  Raises:
    ValueError: if one is no such picture.
  """
  if image is None:
    return [None] * count
  several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
  found = [_pixels(one, channels) for one in (image if several else [image])]
  if len(found) not in (1, count):
    raise ValueError(
      f"image: {len(found)} pictures for {count} prompts; give one, or one for "
      "each"
    )
  return found * count if len(found) == 1 else found


def _pixels(image: Any, channels: int) -> np.ndarray:
  if isinstance(image, Image.Image):
    return image_file.pixels(image, channels)
  if isinstance(image, (str, bytes, os.PathLike)):
    shown = "bytes" if isinstance(image, bytes) else repr(image)
    raise ValueError(f"image = {shown}: open it first, e.g. by PIL.Image.open")
  if not hasattr(image, "ndim"):
    raise ValueError(
      f"image of type {type(image).__name__}: pass a picture of PIL or an "
      "array, or a list of them, one for each prompt"
    )
  # Of whatever library.
  in_bytes = str(getattr(image, "dtype", "")).endswith("uint8")
  values = inputs.as_float32(image, "image")
  values = values[..., None] if values.ndim == 2 else values
  if values.ndim != 3 or values.shape[-1] != channels:
    raise ValueError(
      f"image of shape {values.shape}: this pipeline takes (H, W, {channels}), "
      "channels last"
    )
  if not values.size:
    raise ValueError(f"image of shape {values.shape}: no pixels")
  if in_bytes:
    return values / 127.5 - 1
  if not (np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1):
    raise ValueError(
      f"image with values from {values.min():g} to {values.max():g}: bytes, or "
      "numbers from 0 to 1"
    )
  return values * 2 - 1
