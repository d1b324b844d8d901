"""Features of captions on disk, a file each."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import uuid

import jax.numpy as jnp
import ml_dtypes
import numpy as np


class FeatureCache:
  """A folder that processes may share; a file is a digest, then a .npy."""

  DIGEST_BYTES = 32

  def __init__(self, folder: str | os.PathLike, dtype: str):
    """Makes the folder.

    Args:
      folder: of the files.
      dtype: what they were computed in, and are stored in, bit for bit.
    """
    self._folder = pathlib.Path(folder).expanduser()
    self._folder.mkdir(parents=True, exist_ok=True)
    self._dtype = np.dtype(jnp.dtype(dtype))

  def read(self, key: str) -> np.ndarray | None:
    """Features `f32[S, E]`; None if there are none, or the file is broken."""
    try:
      data = (self._folder / key).read_bytes()
    except FileNotFoundError:
      return None
    digest, data = data[: self.DIGEST_BYTES], data[self.DIGEST_BYTES :]
    if hashlib.sha256(data).digest() != digest:
      return None
    try:
      bits = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
      return None
    return bits.view(self._dtype).astype(np.float32)

  def write(self, key: str, features: np.ndarray) -> None:
    """Writes features under another name first: nobody reads half a file."""
    bits = np.ascontiguousarray(features, self._dtype)
    if self._dtype == ml_dtypes.bfloat16:
      bits = bits.view(np.uint16)  # numpy's files know no bfloat16.
    buffer = io.BytesIO()
    np.save(buffer, bits, allow_pickle=False)
    data = buffer.getvalue()
    trial = self._folder / f".{key}.{uuid.uuid4().hex}"
    try:
      trial.write_bytes(hashlib.sha256(data).digest() + data)
      trial.replace(self._folder / key)
    finally:
      trial.unlink(missing_ok=True)
