"""safetensors files, read and written a tensor at a time."""

from __future__ import annotations

import functools
import json
import math
import pathlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lumina_jax.interop.tensor import Tensor

NAMES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
TYPES = {name: np.dtype(of) for name, of in NAMES.items()}


def read(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a file by name.

  Raises:
    ValueError: if it is cut short or no safetensors file.
  """
  tensors = {}
  try:
    with safe_open(path, "np") as file:
      for name in list(file.keys()):  # Not a dict: it has no iterator.
        part = file.get_slice(name)
        if part.get_dtype() not in TYPES:
          raise ValueError(
            f"{path}: {name} holds numbers of type {part.get_dtype()}; there "
            f"may be {', '.join(TYPES)}"
          )
        tensors[name] = Tensor(
          tuple(part.get_shape()),
          TYPES[part.get_dtype()],
          functools.partial(_read, path, name),
        )
  except SafetensorError as error:
    raise ValueError(
      f"{path} is cut short or no safetensors file ({error}); fetch it again"
    ) from error
  return tensors


def metadata(path: pathlib.Path) -> dict[str, str]:
  """What a file says beside its tensors."""
  with safe_open(path, "np") as file:
    return file.metadata() or {}


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  with safe_open(path, "np") as file:
    return file.get_tensor(name)


class Writer:
  """Writes a file whose shapes are known, its tensors in any order.

  A context manager; an unfinished file is left to the caller to remove.
  """

  def __init__(
    self,
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    metadata: Mapping[str, str] | None = None,
  ):
    """Starts a file.

    Args:
      path: of the file, written in place.
      shapes: of every tensor that it will hold.
      dtype: of all of them.
      metadata: what the file says beside them.
    """
    (code,) = (name for name, of in TYPES.items() if of == dtype)
    self._dtype, self._shapes = dtype, dict(shapes)
    # What PyTorch's loaders look for before they read a file.
    said = {"format": "pt"} | dict(metadata or {})
    header, self._offsets, end = {"__metadata__": said}, {}, 0
    for name, shape in self._shapes.items():
      start, end = end, end + math.prod(shape) * dtype.itemsize
      self._offsets[name] = start
      header[name] = {
        "dtype": code,
        "shape": list(shape),
        "data_offsets": [start, end],
      }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    self._start = 8 + len(text)
    self._file = path.open("wb")
    self._file.write(struct.pack("<Q", len(text)) + text)
    self._file.truncate(self._start + end)

  def add(self, name: str, array: np.ndarray) -> None:
    """Writes a tensor at its place, once."""
    if array.shape != self._shapes[name]:
      raise ValueError(
        f"{name} has shape {array.shape}, announced {self._shapes[name]}"
      )
    self._file.seek(self._start + self._offsets.pop(name))
    array = np.ascontiguousarray(array, self._dtype)
    self._file.write(array.reshape(-1).view(np.uint8).data)

  def close(self) -> None:
    """Ends the file.

    Raises:
      ValueError: if a tensor that was announced is missing.
    """
    self._file.close()
    if self._offsets:
      raise ValueError(f"never written: {', '.join(self._offsets)}")

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, kind, error, trace) -> None:
    if error is None:
      self.close()
    else:
      self._file.close()
