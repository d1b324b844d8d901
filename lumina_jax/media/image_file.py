"""Picture files: their sizes by the header, and decoded, the right way up.

A path names a file, or an example of a dataset of TFDS; see `tfds_source`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from etils import epath
from PIL import ExifTags, Image

from data_pipelines.source import BadRecord

SUFFIXES = (
  *(".jpg", ".jpeg", ".png", ".webp"),
  *(".bmp", ".tif", ".tiff", ".gif"),
)
MODES = {1: "L", 3: "RGB"}  # Of PIL, by channels.
DEEP = 65_535  # White of 16 bits.

_Turn = Image.Transpose
# How to turn what a camera stored, by the orientation it noted (EXIF 2.32).
_TURNS = {
  2: _Turn.FLIP_LEFT_RIGHT,
  3: _Turn.ROTATE_180,
  4: _Turn.FLIP_TOP_BOTTOM,
  5: _Turn.TRANSPOSE,
  6: _Turn.ROTATE_270,
  7: _Turn.TRANSVERSE,
  8: _Turn.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # Rows are stored as columns.

# What Pillow raises on files that are cut off or no pictures.
_FAULTS = (
  *(OSError, SyntaxError, ValueError, EOFError, OverflowError),
  *(struct.error, zlib.error, Image.DecompressionBombError),
)


# What may be over in a moment: a network drive that is gone, too many files.
_PASSING = frozenset(
  (
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EBUSY),
  )
)
PAUSES = (0.1, 0.5, 2.0)  # Seconds before each further attempt.

Out = TypeVar("Out")


def read(path: str) -> bytes:
  """Bytes of a file; what may pass is tried again.

  Raises:
    OSError: if it cannot be read, whatever a store's client raises.
    ImportError: if that client is not installed.
  """
  return _patiently(lambda: _read(path))


def _patiently(function: Callable[[], Out]) -> Out:
  """Calls a function again after faults of the moment, and no others."""
  for pause in PAUSES:
    try:
      return function()
    except OSError as error:
      lost = isinstance(error, (ConnectionError, TimeoutError))
      if not lost and error.errno not in _PASSING:
        raise
    time.sleep(pause)
  return function()


class _Steady(io.RawIOBase):
  """An open file that is opened anew where reading it meets such a fault."""

  def __init__(self, path: str, file: BinaryIO):
    self._path, self._file = path, file

  def readinto(self, buffer: Any) -> int:
    place, broken = self._file.tell(), False

    def attempt():
      nonlocal broken
      if broken:  # What a network drive has dropped stays so.
        fresh = open_bytes(self._path)
        with contextlib.suppress(OSError):
          self._file.close()
        self._file = fresh
        fresh.seek(place)
      broken = True
      return self._file.readinto(buffer)

    return _patiently(attempt)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def close(self) -> None:
    self._file.close()
    super().close()


def _read(path: str) -> bytes:
  try:
    return epath.Path(path).expanduser().read_bytes()
  except (OSError, ImportError):
    raise
  except Exception as error:
    raise OSError(f"{type(error).__name__}: {error}") from error


def open_bytes(path: str) -> BinaryIO:
  """The bytes of a picture, to read and seek."""
  if path.startswith("tfds:"):
    from data_pipelines import tfds_source  # Slow to import.

    return io.BytesIO(tfds_source.image_bytes(path))
  if "://" in path:  # One request to a store, rather than many.
    return io.BytesIO(_read(path))
  try:
    return epath.Path(path).expanduser().open("rb")
  except ValueError as error:  # Zeros in the name, say.
    raise OSError(str(error)) from error


@contextlib.contextmanager
def opened(path: str, file: BinaryIO | None = None) -> Iterator[Image.Image]:
  """A picture whose header alone was read, to go on with.

  Faults that may pass, of opening and of reading, are tried again for
  seconds; a file that is missing or cut short is not.

  Args:
    path: of the picture.
    file: its bytes, where they are at hand.

  Raises:
    BadRecord: if it cannot be read, there or in the body of the with.
  """
  try:
    if file is None:
      file = _Steady(path, _patiently(lambda: open_bytes(path)))
  except OSError as error:
    raise BadRecord(f"{path}: {_reason(error)}") from error
  with file:
    try:
      with Image.open(file) as image:
        yield image
    except _FAULTS as error:
      raise BadRecord(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return "no picture that can be read"
  if isinstance(error, Image.DecompressionBombError):
    return f"too many pixels to be opened ({error}); make it smaller first"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return str(error) or type(error).__name__


def size(path: str, file: BinaryIO | None = None) -> tuple[int, int]:
  """Height and width in pixels, the right way up, by the header alone.

  Args:
    path: of the picture.
    file: its bytes, where they are at hand.

  Raises:
    BadRecord: if it cannot be read, or has no pixels.
  """
  with opened(path, file) as image:
    width, height = image.size
    if not width or not height:
      raise ValueError(f"{width} x {height}: no pixels")
    lying = orientation(image) in SIDEWAYS
    return (width, height) if lying else (height, width)


def turned(image: Image.Image, orientation: int) -> Image.Image:
  """Turns a picture as the camera that took it was held."""
  turn = _TURNS.get(orientation)
  return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
  """How the camera was held, as its notes say (EXIF); 1 is upright."""
  known = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
  if image.format == "TIFF":
    return 1  # Pillow turns these itself.
  if image.format == "PNG" and not any(key in image.info for key in known):
    return 1  # Pillow would decode all pixels to look behind them.
  try:
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
  except _FAULTS:
    return 1  # Broken notes do not spoil the picture.


def plain(image: Image.Image, channels: int) -> Image.Image:
  """A picture of bytes, grey or coloured; what shows through it is white.

  Args:
    image: of any mode of PIL. White is 65535 of modes I;16 and I, 1 of mode F.
    channels: 1 = grey, 3 = colours.

  Raises:
    ValueError: if its values are not between black and white, or Pillow cannot
      convert its mode.
  """
  mode = MODES[channels]
  if is_deep(image):
    # Pillow's own conversion to bytes cuts these off at 255.
    grey = np.round(shades(image) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert(mode)
  return on_white(image).convert(mode)


def on_white(image: Image.Image) -> Image.Image:
  """A picture without transparency."""
  if not image.has_transparency_data:
    return image
  image = image.convert("RGBA")
  paper = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(paper, image)


def is_deep(image: Image.Image) -> bool:
  """Whether it is grey of more than a byte."""
  return image.mode in ("F", "I") or image.mode.startswith("I;16")


def shades(image: Image.Image) -> np.ndarray:
  """`f32[H, W]` in [0, 1] of a grey picture of more than a byte.

  Raises:
    ValueError: if its values are not between black and white.
  """
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
