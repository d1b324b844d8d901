"""Storages of a PyTorch file: reads the bytes of a tensor on demand."""

import functools
import math
import os
import struct
import sys
import zipfile
import zlib
from typing import Any

import numpy as np

from lumina_jax.interop.tensor import Tensor
from lumina_jax.interop.unpickler import PathLike, Storage

# Header of a zip record; the name and extra fields follow.
LOCAL_HEADER = struct.Struct("<4s22xHH")
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # Starts files before PyTorch 1.6.
# Bytes of a pickle, which holds no numbers, and elements of a view with stride
# 0. Real checkpoints stay far below; a larger file tries to exhaust memory.
MAX_PICKLE = 1 << 28
MAX_REPEATED = 1 << 28
MAX_AXES = 64  # NumPy's limit.
AGAIN = "Download it again, or write it again with torch.save"
DAMAGE = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  EOFError,
  NotImplementedError,  # A later version of the zip format.
  OverflowError,
  RuntimeError,  # A zip with a password.
  ValueError,
)


class Archive:
  """A PyTorch file: a zip of a pickle and of the storages it refers to.

  Raises:
    ValueError: if the file is cut short or in another format.
  """

  def __init__(self, path: PathLike):
    self.path = path
    self.size = os.path.getsize(path)
    try:
      with zipfile.ZipFile(path) as file:
        records = {info.filename: info for info in file.infolist()}
    except DAMAGE as error:
      raise ValueError(_not_a_zip(path)) from error
    root = _root(path, records)
    self.records = {k.removeprefix(root): v for k, v in records.items()}

  def pickle(self) -> bytes:
    """Reads the pickle of the object."""
    return self._small("data.pkl")

  def tensor(
    self, storage: Storage, offset: Any, shape: Any, strides: Any
  ) -> Tensor:
    """A view of a storage; offset and strides count elements.

    Raises:
      ValueError: if the view exceeds the storage in the file.
    """
    if type(storage) is not Storage:
      raise ValueError("a tensor has no storage")
    if not _are_sizes(shape, strides, (offset, storage.numel)):
      raise ValueError("a tensor has an invalid shape or strides")
    self._check_storage(storage)
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    span = 0 if 0 in shape else span
    if offset + span > storage.numel:
      raise ValueError(f"a tensor exceeds its storage, {storage.key}")
    if math.prod(max(n, 1) for n in shape) > max(storage.numel, MAX_REPEATED):
      raise ValueError(
        f"a tensor repeats its storage, {storage.key}, too many times"
      )
    dtype = storage.dtype

    def read() -> np.ndarray:
      if not span:  # An empty tensor.
        return np.empty(shape, dtype)
      begin, size = offset * dtype.itemsize, span * dtype.itemsize
      data = self._bytes(f"data/{storage.key}", begin, size)
      if self._swapped:
        data.view(f"u{dtype.itemsize}").byteswap(inplace=True)
      # Along an axis of size 1, a file may give any stride.
      steps = [
        (s if n > 1 else 1) * dtype.itemsize
        for n, s in zip(shape, strides, strict=True)
      ]
      return np.asarray(
        np.ndarray(shape, dtype, data, strides=steps), order="C"
      )

    return Tensor(shape, dtype, read)

  def _check_storage(self, storage: Storage) -> None:
    expected = storage.numel * storage.dtype.itemsize
    info = self.records.get(f"data/{storage.key}")
    size = info.file_size if info else 0
    if size != expected:
      raise ValueError(
        f"storage {storage.key} has {size} bytes rather than {expected}"
      )

  @functools.cached_property
  def _swapped(self) -> bool:
    """Whether the file has the other byte order than this machine."""
    if "byteorder" not in self.records:
      return sys.byteorder != "little"
    return self._small("byteorder") != sys.byteorder.encode()

  def _small(self, name: str) -> bytes:
    size = self.records[name].file_size
    if size > MAX_PICKLE:
      raise ValueError(
        f"{self.path} is refused: its {name} has {size} bytes, far more than "
        f"in a checkpoint. {AGAIN}"
      )
    return self._bytes(name, 0, size).tobytes()

  def _bytes(self, name: str, begin: int, size: int) -> np.ndarray:
    info = self.records[name]
    try:
      if not 0 <= info.header_offset < self.size:
        raise ValueError("it lies outside of the file")
      if info.compress_type == zipfile.ZIP_STORED:
        return self._stored(info, begin, size)
      if info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError("torch never uses its compression")
      with zipfile.ZipFile(self.path) as file, file.open(info) as record:
        record.seek(begin)
        return _fill(record, size)
    except DAMAGE as error:
      raise ValueError(
        f"{self.path} is cut short or damaged: {name} cannot be read ({error})."
        f" {AGAIN}"
      ) from error

  def _stored(self, info: zipfile.ZipInfo, begin: int, size: int) -> np.ndarray:
    # Not by zipfile, which reads the list of all records for each of them.
    with open(self.path, "rb") as file:
      file.seek(info.header_offset)
      header = file.read(LOCAL_HEADER.size)
      magic, name_size, extra_size = LOCAL_HEADER.unpack(header)
      start = file.tell() + name_size + extra_size + begin
      # Before memory is allocated: a zip may claim any size.
      if magic != b"PK\3\4" or start + size > self.size:
        raise ValueError("it is not at the offset that the zip states")
      file.seek(start)
      return _fill(file, size)


def _fill(file: Any, size: int) -> np.ndarray:
  data = np.empty(size, np.uint8)
  if (got := file.readinto(data)) != size:
    raise ValueError(f"{got} bytes rather than {size}")
  return data


def _are_sizes(shape: Any, strides: Any, others: tuple) -> bool:
  """Whether shape, strides and others are valid non-negative sizes."""
  return (
    isinstance(shape, tuple)
    and isinstance(strides, tuple)
    and len(shape) == len(strides) <= MAX_AXES
    and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
    and all(type(n) is int and 0 <= n < 1 << 63 for n in strides + others)
  )


def _root(path: PathLike, names: dict[str, Any]) -> str:
  """The folder of all records in a PyTorch file, e.g. `archive/`."""
  roots = [
    name.removesuffix("data.pkl")
    for name in names
    if name.count("/") == 1 and name.endswith("/data.pkl")
  ]
  if len(roots) != 1:
    raise ValueError(
      f"{path} is a zip without a data.pkl: it is unfinished or not a PyTorch "
      f"checkpoint. {AGAIN}"
    )
  if f"{roots[0]}constants.pkl" in names:
    raise ValueError(
      f"{path} is a TorchScript program, not a checkpoint. Save its state "
      "dict: torch.save(torch.jit.load(path).state_dict(), new_path)"
    )
  return roots[0]


def _not_a_zip(path: PathLike) -> str:
  with open(path, "rb") as file:
    head = file.read(64)
  if LEGACY in head:
    return (
      f"{path} is in the format from before PyTorch 1.6. Load it and save it "
      "again with a current torch, or convert it to safetensors"
    )
  if not head:
    return f"{path} is empty. {AGAIN}"
  if head.startswith(b"PK"):
    return f"{path} is cut short. {AGAIN}"
  return f"{path} is cut short or not a PyTorch file. {AGAIN}"
