"""Random crops of images: decode, shrink, and cut."""

from typing import BinaryIO

import numpy as np
from PIL import Image

from lumina_jax.media import image_file


def load(
  path: str,
  size: tuple[int, int],
  rng: np.random.Generator,
  channels: int,
  flip: bool,
  draft: bool = True,
  file: BinaryIO | None = None,
) -> np.ndarray:
  """Returns a random crop of an image that is resized to just cover it.

  The image is halved by the mean of 2 x 2 pixels while both sides are at least
  twice those of the crop, then resized by cubic interpolation until one side is
  equal, and cut along the other at a uniformly random position, as in the
  training code of Lumina-T2X.

  Args:
    path: file of the image.
    size: height h and width w of the crop in pixels.
    rng: random numbers for position and flip.
    channels: channels C, 1 = gray, 3 = RGB.
    flip: True mirrors every other crop.
    draft: True lets the decoder halve JPEGs by dropping high frequencies: that
      is faster, and differs by less than a shade.
    file: bytes of the image, if they are at hand.

  Returns:
    `f32[h, w, C]` in [-1, 1].

  Raises:
    UnreadableImage: if the image cannot be read.
  """
  position, mirrored = rng.random(), rng.random() < 0.5
  with image_file.open_image(path, file) as image:
    if 0 in image.size:
      raise ValueError(f"{image.width} x {image.height}: no pixels")
    orientation = image_file.orientation(image)
    # Crop what is stored, and turn the crop: it is smaller than the image.
    sideways = orientation in image_file.SIDEWAYS
    stored = size[::-1] if sideways else size
    image, extent = _halve(image, stored, channels, draft)
  image = _resize_and_cut(image, extent, stored, position)
  image = image_file.upright(image, orientation)
  values = np.asarray(image).astype(np.float32).reshape(*size, channels)
  values /= np.float32(127.5)  # In place: memory costs more than arithmetic.
  values -= 1
  return values[:, ::-1] if flip and mirrored else values


def _halve(
  image: Image.Image, size: tuple[int, int], channels: int, draft: bool
) -> tuple[Image.Image, tuple[float, float]]:
  """Halves an image until one side is less than twice that of the crop.

  Returns:
    The image as bytes, and the height and width of its content in pixels: the
    last row and column may be filled in part.
  """
  (height, width), (full_width, full_height) = size, image.size
  factor, decoded = 1, 1
  while min(full_height // height, full_width // width) >= 2 * factor:
    factor *= 2
  mode = image_file.MODES[channels]
  # A decoder of JPEG shrinks by up to 8, but leaves at least this size.
  if draft and (drafted := image.draft(mode, (width, height))):
    decoded = round(full_width / drafted[1][2])
  image = image_file.to_bytes(image, channels)
  if factor > decoded:
    image = image.reduce(factor // decoded)
  return image, (full_height / factor, full_width / factor)


def _resize_and_cut(
  image: Image.Image,
  extent: tuple[float, float],
  size: tuple[int, int],
  position: float,
) -> Image.Image:
  """Resizes an image to cover the crop, and cuts it, in one step."""
  (height, width), (full_height, full_width) = size, extent
  scale = min(full_width / width, full_height / height)
  # Whole pixels of the resized image: what needs no resizing stays sharp.
  slack_x = round(full_width / scale) - width
  slack_y = round(full_height / scale) - height
  left = min(int(position * (slack_x + 1)) * scale, full_width - width * scale)
  top = min(int(position * (slack_y + 1)) * scale, full_height - height * scale)
  left, top = max(left, 0.0), max(top, 0.0)
  right = min(left + width * scale, full_width)
  bottom = min(top + height * scale, full_height)
  box = (left, top, right, bottom)
  return image.resize((width, height), Image.Resampling.BICUBIC, box)
