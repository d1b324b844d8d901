"""A tensor in a file, not yet read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}


class Tensor(NamedTuple):
  """What is known before reading, and how to read it.

  Attributes:
    shape: of the array.
    dtype: likewise.
    read: reads it from disk, and nothing but it; each call reads anew.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def dtype_of(name: str) -> np.dtype:
  """The type of a name.

  Raises:
    ValueError: if it is none that weights are stored in.
  """
  if name not in DTYPES:
    raise ValueError(f"dtype {name!r}: use one of {', '.join(DTYPES)}")
  return DTYPES[name]
