"""Pictures in files, and pictures of PIL as numbers to begin with."""

from __future__ import annotations

import os

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

MODES = {1: "L", 3: "RGB"}  # Of PIL, by channels.
DEEP = 65_535  # White of 16 bits.


def open(path: str | os.PathLike[str], name: str = "image") -> Image.Image:
  """A picture of a file, the right way up.

  Args:
    path: of the file.
    name: of the argument or flag that brought it, for messages.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no picture, or too large a one.
  """
  try:
    with epath.Path(path).expanduser().open("rb") as file:
      return ImageOps.exif_transpose(Image.open(file).copy())
  except (UnidentifiedImageError, SyntaxError) as error:
    raise ValueError(f"{name}={path} is no picture that can be read") from error
  except Image.DecompressionBombError as error:
    raise ValueError(
      f"{name}={path} has too many pixels to be opened ({error}); make it "
      "smaller first"
    ) from error
  except OSError as error:
    raise OSError(
      f"{name}={path} cannot be read: {error.strerror or error}"
    ) from error


def pixels(image: Image.Image, channels: int) -> np.ndarray:
  """A picture of any mode as numbers; what shows through it is white.

  Args:
    image: of PIL. Black is 0; white is 255 of bytes, 65535 of modes I;16 and I,
      and 1 of mode F.
    channels: C to make of it: 1 = grey, 3 = colours.

  Returns:
    `f32[H, W, C]` in [-1, 1].

  Raises:
    ValueError: if there are other channels, no pixels, values that are not
      between black and white, or a mode that Pillow cannot convert.
  """
  if channels not in MODES:
    raise ValueError(
      f"image: this pipeline draws {channels} channels, pictures of PIL have 1 "
      "or 3; if those are latents, load it with a vae"
    )
  if 0 in image.size:
    raise ValueError(f"image of {image.width} x {image.height}: no pixels")
  if image.mode in ("F", "I") or image.mode.startswith("I;16"):
    # Pillow's own conversion to bytes cuts these off at 255.
    grey = _deep(image)[..., None]
    return np.repeat(grey * 2 - 1, channels, axis=-1)
  values = np.asarray(_plain(image, MODES[channels]), np.float32)
  return values.reshape(image.height, image.width, channels) / 127.5 - 1


def _plain(image: Image.Image, mode: str) -> Image.Image:
  """Bytes without transparency."""
  try:
    if image.has_transparency_data:
      image = image.convert("RGBA")
      paper = Image.new("RGBA", image.size, "white")
      image = Image.alpha_composite(paper, image)
    return image.convert(mode)
  except ValueError as error:
    raise ValueError(
      f"image of mode {image.mode}: Pillow cannot make it {mode} ({error}); "
      "convert it to RGB first"
    ) from error


def _deep(image: Image.Image) -> np.ndarray:
  """`f32[H, W]` in [0, 1] of a grey picture of more than a byte."""
  white = 1 if image.mode == "F" else DEEP
  values = np.asarray(image).astype(np.float32)
  low, high = values.min(), values.max()
  if not 0 <= low <= high <= white:  # What is no number fails too.
    raise ValueError(
      f"image of mode {image.mode} with values from {low:g} to {high:g}: they "
      f"go from 0 (black) to {white} (white) there; scale it first"
    )
  hidden = image.info.get("transparency")
  if isinstance(hidden, int):  # A grey that stands for nothing.
    values = np.where(values == hidden, np.float32(white), values)
  return values / white
