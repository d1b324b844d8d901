"""Pictures in files, and pictures of PIL as numbers to begin with."""

from __future__ import annotations

import os

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from lumina_jax.media import image_file as picture_file

MODES = {1: "L", 3: "RGB"}  # Of PIL, by channels.


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
  if picture_file.is_deep(image):
    # Pillow's own conversion to bytes cuts these off at 255.
    grey = picture_file.shades(image)[..., None]
    return np.repeat(grey * 2 - 1, channels, axis=-1)
  values = np.asarray(_plain(image, MODES[channels]), np.float32)
  return values.reshape(image.height, image.width, channels) / 127.5 - 1


def _plain(image: Image.Image, mode: str) -> Image.Image:
  """Bytes without transparency."""
  try:
    return picture_file.on_white(image).convert(mode)
  except ValueError as error:
    raise ValueError(
      f"image of mode {image.mode}: Pillow cannot make it {mode} ({error}); "
      "convert it to RGB first"
    ) from error
