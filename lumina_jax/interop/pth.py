"""Reads and writes PyTorch's checkpoint files (.pth) without PyTorch.

Such a file is a zip. `data.pkl` is a pickle of the object; its tensors refer to
`data/<key>`, the bytes of a storage. No pickled code runs, and one tensor is
read or written at a time.
"""

from __future__ import annotations

import argparse
import math
import pickle
import struct
import sys
import zipfile
from typing import Any

import numpy as np

from lumina_jax.interop import unpickler
from lumina_jax.interop.storages import Archive
from lumina_jax.interop.tensor import Tensor
from lumina_jax.interop.unpickler import PathLike

ROOT = "archive"  # The folder in the zip; PyTorch accepts any name.
ALIGNMENT = 64  # Bytes; torch.load(mmap=True) maps storages in place.
LARGE = 1 << 30  # Bytes from which a record needs a zip64 header.
HEADER_BYTES = 30
LONG_SIZES_BYTES = 20
WRITABLE = {
  dtype: storage
  for name, (dtype, storage) in unpickler.TYPES.items()
  if name not in ("int16", "int8", "uint8")
}


def read(path: PathLike) -> Any:
  """Reads the object in a file, with a `Tensor` for each tensor.

  Parameters become tensors, ordered dicts become dicts, devices and dtypes
  become their names ("cuda:0", "torch.bfloat16").

  Raises:
    Unsafe: if the file holds anything but tensors, plain values and containers.
    ValueError: if the file is cut short, damaged or in another format.
  """
  archive = Archive(path)
  value = unpickler.load(path, archive.pickle(), archive.tensor)
  unpickler.check(path, value, (*unpickler.LEAVES, Tensor))
  return value


def read_namespace(path: PathLike) -> dict[str, Any]:
  """Reads the values of an argparse.Namespace, or of a plain dict.

  Raises:
    Unsafe: if the file holds anything but plain values and containers.
    ValueError: if the file is cut short, damaged or holds another object.
  """
  archive = Archive(path)
  value = unpickler.load(path, archive.pickle(), archive.tensor, namespace=True)
  return unpickler.as_dict(path, value)


def write_namespace(path: PathLike, values: dict[str, Any]) -> None:
  """Writes values that torch.load returns as an argparse.Namespace.

  Raises:
    Unsafe: naming a value that is not plain.
  """
  values = unpickler.as_dict(path, values)
  with zipfile.ZipFile(path, "w") as file:
    _finish(file, pickle.dumps(argparse.Namespace(**values), protocol=2))


class Writer:
  """Writes a state dict that torch.load reads, one tensor at a time.

  A context manager. `close` writes the list of tensors; a file without it, as
  after an error, cannot be read.
  """

  def __init__(self, path: PathLike):
    self.path = path
    self._file = zipfile.ZipFile(path, "w")
    self._tensors: dict[str, bytes] = {}  # Name -> its opcodes.
    self._end = 0  # Bytes written.
    self._closed = False

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, error: type[BaseException] | None, *_) -> None:
    if error is None:
      self.close()
    else:
      self._closed = True
      self._file.close()

  def add(self, name: str, array: np.ndarray) -> None:
    """Writes one tensor.

    Raises:
      ValueError: if the name is taken, PyTorch has no such dtype or the file is
        closed.
    """
    array = np.asarray(array)
    if self._closed:
      raise ValueError(f"{self.path} is closed; cannot add {name}")
    if name in self._tensors:
      raise ValueError(f"{self.path} already has {name}")
    if array.dtype not in WRITABLE:
      raise ValueError(
        f"{self.path}: {name} has dtype {array.dtype}; convert it to one of "
        f"{', '.join(map(str, WRITABLE))}"
      )
    key = str(len(self._tensors))
    self._write(f"{ROOT}/data/{key}", array)
    self._tensors[name] = _pickled_tensor(key, array)

  def close(self) -> None:
    """Writes the list of tensors and closes the file."""
    if self._closed:
      return
    self._closed = True
    items = [_pickled(k) + tensor for k, tensor in self._tensors.items()]
    ordered_dict = _global("collections", "OrderedDict") + b")R"
    with self._file as file:
      _finish(file, b"\x80\x02" + ordered_dict + b"(" + b"".join(items) + b"u.")

  def _write(self, name: str, array: np.ndarray) -> None:
    large = array.nbytes >= LARGE
    start = self._end + HEADER_BYTES + len(name) + LONG_SIZES_BYTES * large
    info = zipfile.ZipInfo(name)
    info.extra = _padding(start)
    with self._file.open(info, "w", force_zip64=large) as file:
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    self._end = start + len(info.extra) + array.nbytes


def _padding(start: int) -> bytes:
  """An extra field of a zip header that aligns the record after it."""
  size = -(start + 4) % ALIGNMENT
  return struct.pack("<2sH", b"FB", size) + b"Z" * size


def _finish(file: zipfile.ZipFile, data: bytes) -> None:
  """Writes the pickle and the other records that torch expects."""
  for name, content in (
    ("data.pkl", data),
    ("byteorder", sys.byteorder.encode()),
    ("version", b"3\n"),
  ):
    file.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), content)


def _pickled_tensor(key: str, array: np.ndarray) -> bytes:
  """Opcodes of the call that rebuilds a tensor from a whole storage."""
  storage = map(_pickled, (key, "cpu", array.size))
  view = map(_pickled, (0, array.shape, _strides(array.shape), False))
  return b"".join(
    [
      _global("torch._utils", "_rebuild_tensor_v2"),
      b"((",
      _pickled("storage"),
      _global(*WRITABLE[array.dtype].split(".")),
      *storage,
      b"tQ",
      *view,
      _global("collections", "OrderedDict"),
      b")RtR",
    ]
  )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides of an array in C order, in elements."""
  return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _global(module: str, name: str) -> bytes:
  return f"c{module}\n{name}\n".encode()


def _pickled(value: Any) -> bytes:
  """Opcodes of a plain value, without the header and the STOP."""
  return pickle.dumps(value, protocol=2)[2:-1]
