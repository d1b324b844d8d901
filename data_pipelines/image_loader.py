"""Reads the images of records, from files or from examples of TFDS.

Images that cannot be read raise `BadRecord`.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from data_pipelines import tfds_dataset
from data_pipelines.source import BadRecord
from lumina_jax.media import crop, image_file


def image_size(path: str, file: BinaryIO | None = None) -> tuple[int, int]:
  """Height and width of the upright image in pixels, from its header.

  Args:
    path: a file, or the address of an example of TFDS.
    file: bytes of the image, if they are at hand.

  Raises:
    BadRecord: if the image cannot be read.
  """
  with _bad_if_unreadable():
    return image_file.size(path, file or _example(path))


def load_crop(
  path: str,
  size: tuple[int, int],
  rng: np.random.Generator,
  channels: int,
  flip: bool,
) -> np.ndarray:
  """A random crop of an image, `f32[h, w, C]` in [-1, 1]; see `crop.load`.

  Raises:
    BadRecord: if the image cannot be read.
  """
  with _bad_if_unreadable():
    return crop.load(path, size, rng, channels, flip, file=_example(path))


def _example(path: str) -> BinaryIO | None:
  """The image of an example of TFDS; None for files."""
  if tfds_dataset.is_address(path):
    return io.BytesIO(tfds_dataset.read_image(path))
  return None


@contextlib.contextmanager
def _bad_if_unreadable() -> Iterator[None]:
  try:
    yield
  except image_file.UnreadableImage as error:
    raise BadRecord(str(error)) from error
