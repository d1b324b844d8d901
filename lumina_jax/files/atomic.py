"""Atomic writes: after a crash a file is the old one or the new one.

On a disk, data go to a temporary file that is then renamed. In an object store
such as gs://, a rename is a copy; there an object appears whole or not at all,
so it is written under its own name.
"""

import contextlib
import os
import uuid

from etils import epath


def in_store(path: epath.PathLike) -> bool:
  """Whether a path lies in an object store rather than on a disk."""
  return "://" in os.fspath(epath.Path(path))


def read_text(path: epath.PathLike) -> str | None:
  """Reads UTF-8 text; returns None if the file does not exist.

  Unlike `exists`, which some store clients answer with False when the network
  is down, this never mistakes a failure for a missing file.

  Raises:
    OSError: if the file cannot be read.
  """
  path = epath.Path(path)
  try:
    return path.read_bytes().decode()
  except FileNotFoundError:
    return None
  except (ImportError, UnicodeDecodeError):
    raise
  except Exception as error:  # Store clients raise many types.
    raise OSError(f"cannot read {path}: {reason(error)}") from error


def write_text(path: epath.PathLike, text: str) -> None:
  """Like `write_bytes`, for UTF-8 text."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: the file, in a folder that exists.
    data: its content.

  Raises:
    OSError: if it cannot be written; says whether the old file remains.
    ImportError: if a store's client is not installed.
  """
  path = epath.Path(path)
  if in_store(path):
    _put(path, data)
    return
  try:
    _replace(path, data)
  except OSError as error:
    left = "the old file remains" if path.exists() else "there is no file now"
    raise OSError(f"cannot write {path}: {reason(error)}; {left}") from error


def make_folder(folder: epath.PathLike) -> None:
  """Makes a folder and checks that it can be written to.

  Raises:
    OSError: naming the folder, if it cannot be written to.
  """
  folder = epath.Path(folder)
  probe = folder / f".write_test_{os.getpid()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text("")
    probe.unlink()
  except ImportError as error:
    raise OSError(
      f'{folder} lies in a bucket, which needs pip install -e ".[gcs]" '
      f"({error})"
    ) from error
  except Exception as error:  # Store clients raise many types.
    raise OSError(
      f"cannot write to {folder}: {reason(error)}. Name another folder, or "
      "make this one writable"
    ) from error


def reason(error: Exception) -> str:
  """The message of an error, without the path that the system adds."""
  return getattr(error, "strerror", None) or str(error) or repr(error)


def _replace(path: epath.Path, data: bytes) -> None:
  # A unique short name: `path.name` plus a suffix could be too long.
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
      f"cannot write {path}: {reason(error)}; an old object remains, unless "
      "the store wrote the new one and its answer was lost"
    ) from error
