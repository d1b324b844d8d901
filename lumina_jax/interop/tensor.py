"""A tensor in a file that is read on demand."""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lumina_jax.files.suggest import check_name

DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}


class Tensor(NamedTuple):
  """Shape and dtype of a tensor in a file, and a function that reads it.

  Attributes:
    shape: Shape of the array.
    dtype: Dtype of the array.
    read: Reads the array from disk; every call reads it again.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def dtype_of(name: str) -> np.dtype:
  """The dtype of a name.

  Raises:
    ValueError: if weights are not stored in a dtype of this name.
  """
  check_name("dtype", name, DTYPES)
  return DTYPES[name]


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Casts an array to the dtype of a file.

  Raises:
    ValueError: naming the array, if float16 cannot hold its values.
  """
  with np.errstate(over="ignore"):
    array = array.astype(dtype, copy=False)
  if dtype == np.float16 and not np.isfinite(array).all():
    raise ValueError(
      f"{name} holds values that float16 cannot represent; use bfloat16"
    )
  return array
