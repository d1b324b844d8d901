"""Image files: sizes from their headers, and pixels, upright."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from lumina_jax.files import atomic, reading

SUFFIXES = (
  *(".jpg", ".jpeg", ".png", ".webp"),
  *(".bmp", ".tif", ".tiff", ".gif"),
)
MODES = {1: "L", 3: "RGB"}  # Modes of PIL, by channels.
DEEP = 65_535  # White in 16 bits.
JPEG_QUALITY = 90

_Turn = Image.Transpose
# How to turn the stored pixels, by orientation (EXIF 2.32).
_TURNS = {
  2: _Turn.FLIP_LEFT_RIGHT,
  3: _Turn.ROTATE_180,
  4: _Turn.FLIP_TOP_BOTTOM,
  5: _Turn.TRANSPOSE,
  6: _Turn.ROTATE_270,
  7: _Turn.TRANSVERSE,
  8: _Turn.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # Orientations that store rows as columns.

# What Pillow raises on files that are cut off or are not images.
_ERRORS = (
  *(OSError, SyntaxError, ValueError, EOFError, OverflowError),
  *(struct.error, zlib.error, Image.DecompressionBombError),
)


class UnreadableImage(Exception):
  """An image that cannot be read; the message names it and the reason."""


@contextlib.contextmanager
def open_image(
  path: str, file: BinaryIO | None = None
) -> Iterator[Image.Image]:
  """Opens an image and reads its header only.

  Args:
    path: file of the image; transient errors of reading it are retried.
    file: bytes of the image, if they are at hand; then `path` is a name only.

  Raises:
    UnreadableImage: if the image cannot be read, here or in the body of the
      `with` statement.
  """
  try:
    file = reading.open_binary(path) if file is None else file
  except OSError as error:
    raise UnreadableImage(f"{path}: {_reason(error)}") from error
  with file:
    try:
      with Image.open(file) as image:
        yield image
    except _ERRORS as error:
      raise UnreadableImage(f"{path}: {_reason(error)}") from error


def size(path: str, file: BinaryIO | None = None) -> tuple[int, int]:
  """Height and width of the upright image in pixels, from the header.

  Args:
    path: file of the image.
    file: bytes of the image, if they are at hand.

  Raises:
    UnreadableImage: if the image cannot be read, or has no pixels.
  """
  with open_image(path, file) as image:
    width, height = image.size
    if not width or not height:
      raise ValueError(f"{width} x {height}: no pixels")
    sideways = orientation(image) in SIDEWAYS
    return (width, height) if sideways else (height, width)


def upright(image: Image.Image, orientation: int) -> Image.Image:
  """Turns stored pixels upright."""
  turn = _TURNS.get(orientation)
  return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
  """The orientation in the EXIF data of an image; 1 is upright."""
  known = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
  if image.format == "TIFF":
    return 1  # Pillow turns these itself.
  if image.format == "PNG" and not any(key in image.info for key in known):
    return 1  # Pillow would decode all pixels to look behind them.
  try:
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
  except _ERRORS:
    return 1  # Broken EXIF data do not spoil the image.


def to_bytes(image: Image.Image, channels: int) -> Image.Image:
  """Converts an image to bytes; transparent pixels become white.

  Args:
    image: any mode of PIL. White is 65535 in modes I;16 and I, 1 in mode F.
    channels: 1 = gray, 3 = RGB.

  Raises:
    ValueError: if values lie beyond black and white, or Pillow cannot convert
      the mode.
  """
  mode = MODES[channels]
  if is_deep(image):
    # Pillow's own conversion clips these at 255.
    gray = np.round(shades(image) * 255).astype(np.uint8)
    return Image.fromarray(gray).convert(mode)
  return on_white(image).convert(mode)


def on_white(image: Image.Image) -> Image.Image:
  """Replaces transparency by white."""
  if not image.has_transparency_data:
    return image
  image = image.convert("RGBA")
  paper = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(paper, image)


def is_deep(image: Image.Image) -> bool:
  """Whether the image is gray with more than 8 bits."""
  return image.mode in ("F", "I") or image.mode.startswith("I;16")


def shades(image: Image.Image) -> np.ndarray:
  """Gray values `f32[H, W]` in [0, 1] of an image with more than 8 bits.

  Raises:
    ValueError: if values lie beyond black and white.
  """
  white = 1 if image.mode == "F" else DEEP
  values = np.asarray(image).astype(np.float32)
  low, high = values.min(), values.max()
  if not 0 <= low <= high <= white:  # NaN fails too.
    raise ValueError(
      f"image of mode {image.mode} with values from {low:g} to {high:g}: they "
      f"must be from 0 (black) to {white} (white); scale it first"
    )
  transparent = image.info.get("transparency")
  if isinstance(transparent, int):
    values = np.where(values == transparent, np.float32(white), values)
  return values / white


def encode(image: Image.Image, max_side: int) -> tuple[str, bytes]:
  """Encodes an image as JPEG, or as PNG if it is gray.

  Args:
    image: image of mode L, RGB or one that converts to RGB; a larger one than
      `max_side` is shrunk in place.
    max_side: largest height and width in pixels.

  Returns:
    Suffix and content of the file.
  """
  image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  data = io.BytesIO()
  if image.mode == "L":
    image.save(data, "PNG", optimize=True)
    return ".png", data.getvalue()
  image.convert("RGB").save(data, "JPEG", quality=JPEG_QUALITY)
  return ".jpg", data.getvalue()


def _reason(error: Exception) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return "not an image that can be read"
  if isinstance(error, Image.DecompressionBombError):
    return f"too many pixels to open ({error}); make it smaller first"
  return atomic.reason(error)
