"""Reads and writes safetensors files, one tensor at a time."""

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
DTYPES = {name: np.dtype(kind) for name, kind in NAMES.items()}


def read(path: pathlib.Path) -> dict[str, Tensor]:
  """Lists the tensors of a file by name, without reading them.

  Raises:
    ValueError: if the file is cut short or not a safetensors file.
  """
  tensors = {}
  try:
    with safe_open(path, "np") as file:
      for name in list(file.keys()):  # The file itself is not iterable.
        part = file.get_slice(name)
        if part.get_dtype() not in DTYPES:
          raise ValueError(
            f"{path}: {name} has dtype {part.get_dtype()}; supported are "
            f"{', '.join(DTYPES)}"
          )
        tensors[name] = Tensor(
          tuple(part.get_shape()),
          DTYPES[part.get_dtype()],
          functools.partial(_read, path, name),
        )
  except SafetensorError as error:
    raise ValueError(
      f"{path} is cut short or not a safetensors file ({error}); download it "
      "again"
    ) from error
  return tensors


def metadata(path: pathlib.Path) -> dict[str, str]:
  """The metadata of a file."""
  with safe_open(path, "np") as file:
    return file.metadata() or {}


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  with safe_open(path, "np") as file:
    return file.get_tensor(name)


class Writer:
  """Writes a file whose shapes are known; tensors may come in any order.

  A context manager. The caller removes a file that is not finished.
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
      path: the file, written in place.
      shapes: shape of every tensor by name.
      dtype: dtype of all tensors.
      metadata: stored beside the tensors.
    """
    (code,) = (name for name, kind in DTYPES.items() if kind == dtype)
    self._dtype, self._shapes = dtype, dict(shapes)
    # transformers and diffusers refuse a file without a format.
    metadata = {"format": "pt"} | dict(metadata or {})
    header, self._offsets, end = {"__metadata__": metadata}, {}, 0
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
    """Writes one tensor.

    Raises:
      ValueError: if its shape is not the announced one.
    """
    if array.shape != self._shapes[name]:
      raise ValueError(
        f"{name} has shape {array.shape}, expected {self._shapes[name]}"
      )
    self._file.seek(self._start + self._offsets.pop(name))
    array = np.ascontiguousarray(array, self._dtype)
    self._file.write(array.reshape(-1).view(np.uint8).data)

  def close(self) -> None:
    """Closes the file.

    Raises:
      ValueError: if a tensor was not written.
    """
    self._file.close()
    if self._offsets:
      raise ValueError(f"not written: {', '.join(self._offsets)}")

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, kind, error, trace) -> None:
    if error is None:
      self.close()
    else:
      self._file.close()
