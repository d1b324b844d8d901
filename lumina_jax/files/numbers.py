"""Numbers and arrays that callers, flags and files give."""

import math
from typing import Any

import numpy as np


def number(value: Any, name: str) -> float:
  """A finite number; text such as "1e-6" passes, True and False do not.

  Raises:
    ValueError: naming any other value.
  """
  found = _finite(value)
  if found is None:
    raise ValueError(f"{name} = {value!r}: must be a finite number")
  return found


def whole(value: Any, name: str) -> int:
  """A whole number; 4.0 passes.

  Raises:
    ValueError: naming any other value.
  """
  found = _finite(value)
  if found is None or not found.is_integer():
    raise ValueError(f"{name} = {value!r}: must be a whole number")
  return int(found)


def positive(value: Any, name: str) -> int:
  """A whole number of at least 1.

  Raises:
    ValueError: naming any other value.
  """
  found = whole(value, name)
  if found < 1:
    raise ValueError(f"{name} = {value!r}: must be at least 1")
  return found


def array(x: Any, name: str) -> np.ndarray:
  """An array of numpy, JAX or torch, on any device, or lists, as float32.

  Raises:
    ValueError: if it holds anything but finite real numbers.
  """
  if hasattr(x, "detach"):  # numpy cannot read every torch tensor.
    x = x.detach().float().cpu().numpy()
  try:
    if np.iscomplexobj(x):
      raise TypeError("they are complex")
    found = np.asarray(x, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} is not an array of numbers ({error})") from error
  if not np.isfinite(found).all():
    raise ValueError(f"{name} has values that are not finite")
  return found


def _finite(value: Any) -> float | None:
  if isinstance(value, bool | np.bool_):
    return None
  try:
    found = float(value)
  except (TypeError, ValueError, OverflowError):
    return None
  return found if math.isfinite(found) else None
