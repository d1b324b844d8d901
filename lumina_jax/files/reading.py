"""Reads files of disks and stores; transient errors are retried.

Network drives fail for moments. Missing and truncated files are not retried.
"""

import contextlib
import errno
import io
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from etils import epath

from lumina_jax.files import atomic

TRANSIENT = frozenset(
  (
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EBUSY),
  )
)
PAUSES = (0.1, 0.5, 2.0)  # Seconds before each further attempt.

Out = TypeVar("Out")


def read_bytes(path: str) -> bytes:
  """Reads a file.

  Raises:
    OSError: if it cannot be read, whatever the client of a store raises.
    ImportError: if that client is not installed.
  """
  return _retry(lambda: _read_once(path))


def read_text(path: str, name: str) -> str:
  """Reads UTF-8 text that a user names.

  Args:
    path: of the file; some editors begin it with a byte order mark.
    name: of the file, for messages.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not UTF-8 text.
  """
  try:
    return read_bytes(path).decode("utf-8-sig")
  except OSError as error:
    raise OSError(f"{name} cannot be read: {atomic.reason(error)}") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8 text: {error}") from error


def open_binary(path: str) -> BinaryIO:
  """Opens a file to read and seek; reads that fail open it again.

  Raises:
    OSError: if it cannot be opened.
    ImportError: if the client of a store is not installed.
  """
  return _RetryingFile(path, _retry(lambda: _open_once(path)))


def _retry(function: Callable[[], Out]) -> Out:
  """Calls a function again after transient errors."""
  for pause in PAUSES:
    try:
      return function()
    except OSError as error:
      lost = isinstance(error, (ConnectionError, TimeoutError))
      if not lost and error.errno not in TRANSIENT:
        raise
    time.sleep(pause)
  return function()


class _RetryingFile(io.RawIOBase):
  """An open file that is opened again if reading it fails for a moment."""

  def __init__(self, path: str, file: BinaryIO):
    self._path, self._file = path, file

  def readinto(self, buffer: Any) -> int:
    position, failed = self._file.tell(), False

    def attempt():
      nonlocal failed
      if failed:  # A handle that a network drive dropped never recovers.
        file = _open_once(self._path)
        with contextlib.suppress(OSError):
          self._file.close()
        self._file = file
        file.seek(position)
      failed = True
      return self._file.readinto(buffer)

    return _retry(attempt)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def close(self) -> None:
    self._file.close()
    super().close()


def _read_once(path: str) -> bytes:
  try:
    return epath.Path(path).expanduser().read_bytes()
  except (OSError, ImportError):
    raise
  except Exception as error:  # Store clients raise many types.
    raise OSError(f"{type(error).__name__}: {error}") from error


def _open_once(path: str) -> BinaryIO:
  if "://" in path:  # In a store: one request rather than many.
    return io.BytesIO(_read_once(path))
  try:
    return epath.Path(path).expanduser().open("rb")
  except ValueError as error:  # A null byte in the name, say.
    raise OSError(str(error)) from error
