"""Pictures to crops: decode, shrink, and cut out a place at random."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lumina_jax.media import image_file as picture_file


def load(
  path: str,
  size: tuple[int, int],
  rng: np.random.Generator,
  channels: int,
  flip: bool,
  draft: bool = True,
) -> np.ndarray:
  """A crop of a picture that has just shrunk (or grown) to cover it.

  Halved by the mean of 2 x 2 pixels while both sides are at least twice as long
  as the crop's, then resized by cubic interpolation until one side is equal,
  and cut along the other at a place of equal chance (as Lumina-T2X trains).

  Args:
    path: of the picture; see `picture_file`.
    size: height h and width w of the crop in pixels.
    rng: of the place and the flip.
    channels: C, 1 = grey, 3 = colours.
    flip: True swaps left and right of every other crop.
    draft: True has JPEGs halved by their decoder, by leaving out high
      frequencies: faster, and as good as equal.

  Returns:
    `f32[h, w, C]` in [-1, 1].

  Raises:
    BadRecord: if the picture cannot be read.
  """
  place, mirrored = rng.random(), rng.random() < 0.5
  with picture_file.opened(path) as image:
    if 0 in image.size:
      raise ValueError(f"{image.width} x {image.height}: no pixels")
    orientation = picture_file.orientation(image)
    # As it is stored: a crop is turned faster than a picture.
    lying = orientation in picture_file.SIDEWAYS
    stored = size[::-1] if lying else size
    image, extent = _halved(image, stored, channels, draft)
  image = _covered(image, extent, stored, place)
  image = picture_file.turned(image, orientation)
  values = np.asarray(image).astype(np.float32).reshape(*size, channels)
  values /= np.float32(127.5)  # In place: memory costs more than sums.
  values -= 1
  return values[:, ::-1] if flip and mirrored else values


def _halved(
  image: Image.Image, size: tuple[int, int], channels: int, draft: bool
) -> tuple[Image.Image, tuple[float, float]]:
  """Plain, of less than twice the crop's size on one side.

  Returns:
    The picture, and how many of its pixels it fills in height and width: the
    last may be a part of one.
  """
  (height, width), (full_width, full_height) = size, image.size
  factor, drawn = 1, 1
  while min(full_height // height, full_width // width) >= 2 * factor:
    factor *= 2
  mode = picture_file.MODES[channels]
  # A decoder that can, of JPEG, shrinks by as much as leaves this size, or 8.
  if draft and (how := image.draft(mode, (width, height))):
    drawn = round(full_width / how[1][2])
  image = picture_file.plain(image, channels)
  if factor > drawn:
    image = image.reduce(factor // drawn)
  return image, (full_height / factor, full_width / factor)


def _covered(
  image: Image.Image,
  extent: tuple[float, float],
  size: tuple[int, int],
  place: float,
) -> Image.Image:
  """Resized to cover the crop, and cropped, in one go."""
  (height, width), (full_height, full_width) = size, extent
  scale = min(full_width / width, full_height / height)
  # Whole pixels of the resized picture: what has the right size stays sharp.
  slack_x = round(full_width / scale) - width
  slack_y = round(full_height / scale) - height
  left = min(int(place * (slack_x + 1)) * scale, full_width - width * scale)
  top = min(int(place * (slack_y + 1)) * scale, full_height - height * scale)
  left, top = max(left, 0.0), max(top, 0.0)
  right = min(left + width * scale, full_width)
  bottom = min(top + height * scale, full_height)
  box = (left, top, right, bottom)
  return image.resize((width, height), Image.Resampling.BICUBIC, box)
