"""Files that a death leaves whole: the old one or the new one, never half.

On a disk a file is written under another name, then renamed. In a store, such
as gs://, a rename copies and deletes; but there an object appears whole or not
at all, so it is written under its own name.
"""

from __future__ import annotations

import contextlib
import os
import uuid

from etils import epath


def in_store(path: epath.PathLike) -> bool:
  """Whether a path lies in an object store and not on a disk."""
  return "://" in os.fspath(epath.Path(path))


def read_text(path: epath.PathLike) -> str | None:
  """Text of a file in UTF-8; None if there is none.

  Whoever reads a file to write it anew must not mistake a fault for an absence,
  as `exists` may: some clients of stores answer False when the net is down.

  Raises:
    OSError: if it cannot be read.
  """
  path = epath.Path(path)
  try:
    return path.read_bytes().decode()
  except FileNotFoundError:
    return None
  except (ImportError, UnicodeDecodeError):
    raise
  except Exception as error:  # Clients of stores raise many kinds.
    raise OSError(f"cannot read {path}: {reason(error)}") from error


def write_text(path: epath.PathLike, text: str) -> None:
  """Like `write_bytes`, of text in UTF-8."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: of the file, in a folder that exists.
    data: all of it; what makes it up must not fail half way into a store.

  Raises:
    OSError: naming the file and what is there now, if it cannot be written.
    ImportError: if a store's client is not installed.
  """
  path = epath.Path(path)
  if in_store(path):
    _put(path, data)
    return
  try:
    _replace(path, data)
  except OSError as error:
    left = "the old one stays" if path.exists() else "there is none now"
    raise OSError(f"cannot write {path}: {reason(error)}; {left}") from error


def reason(error: Exception) -> str:
  """What an error says, without the paths that the system adds."""
  return getattr(error, "strerror", None) or str(error) or repr(error)


def _replace(path: epath.Path, data: bytes) -> None:
  # A name of its own for each writer; not the file's name and more, which may
  # be too long where that of a picture is not.
  new = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
  try:
    with open(new, "xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())  # A rename may reach the disk before the data.
    os.replace(new, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(new)
    raise


def _put(path: epath.Path, data: bytes) -> None:
  try:
    path.write_bytes(data)
  except ImportError:
    raise
  except Exception as error:
    raise OSError(
      f"cannot write {path}: {reason(error)}; the old one stays, if there was "
      "one, unless the store wrote the new one and its answer was lost"
    ) from error
