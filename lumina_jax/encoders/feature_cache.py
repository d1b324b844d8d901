"""A folder of features, one file per caption."""

import hashlib
import io
import os
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lumina_jax.files import atomic

DIGEST_BYTES = 32


class FeatureCache:
  """Stores features in a folder that processes may share.

  A file holds a SHA-256 digest and then an array in numpy's format.
  """

  def __init__(self, folder: str | os.PathLike, dtype: str):
    """Creates the folder if it is missing.

    Args:
      folder: the folder.
      dtype: dtype that the features are computed in; files hold the same bits.

    Raises:
      OSError: if the folder cannot be written to.
    """
    self._folder = pathlib.Path(folder).expanduser()
    atomic.make_folder(self._folder)
    self._dtype = np.dtype(jnp.dtype(dtype))

  def read(self, key: str) -> np.ndarray | None:
    """Reads features `f32[S, E]`; None if they are missing or damaged."""
    try:
      data = (self._folder / key).read_bytes()
    except FileNotFoundError:
      return None
    digest, data = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
      return None
    try:
      bits = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
      return None
    return bits.view(self._dtype).astype(np.float32)

  def write(self, key: str, features: np.ndarray) -> None:
    """Writes features; other processes never read half a file.

    Raises:
      OSError: if the file cannot be written.
    """
    bits = np.ascontiguousarray(features, self._dtype)
    if self._dtype == ml_dtypes.bfloat16:
      bits = bits.view(np.uint16)  # numpy's format has no bfloat16.
    buffer = io.BytesIO()
    np.save(buffer, bits, allow_pickle=False)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).digest()
    atomic.write_bytes(self._folder / key, digest + data)
