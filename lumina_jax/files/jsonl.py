"""JSON Lines files that grow, on a disk or in an object store."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from lumina_jax.files import atomic


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads all rows; warns about lines that a crash cut short, and skips them.

  Raises:
    OSError: if the file cannot be read. A missing file has no rows.
  """
  rows = []
  for line in (atomic.read_text(path) or "").splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      logging.warning("a line of %s is cut short and ignored", path)
  return rows


class Writer:
  """Appends rows for a single writer; a crash leaves the file readable.

  A disk file is appended to: a row is in the file when `append` returns, though
  a crash may cut it short. An object cannot be appended to, so rows are
  buffered and the object is rewritten now and then: at most every `SECONDS`,
  since stores limit the rate of updates, and no more often than takes 1 % of
  the time. A crash loses what came after the last `flush`.
  """

  SECONDS = 30.0
  SHARE = 100  # Seconds between two writes for every second that one takes.

  def __init__(self, path: epath.PathLike, rows: Iterable[dict] = ()):
    """Starts the file anew.

    Args:
      path: the file, in a folder that exists.
      rows: to begin with.

    Raises:
      OSError: if it cannot be written.
    """
    self._path = epath.Path(path)
    self._in_store = atomic.in_store(path)
    self._lines = [_line(row) for row in rows]
    self._write()
    if not self._in_store:
      self._lines.clear()  # The disk has them.

  def append(self, row: dict[str, Any]) -> None:
    """Adds a row.

    Raises:
      OSError: if a disk refuses it. If a store does, this warns and retries at
        the next write.
    """
    self._flushed = False
    if not self._in_store:
      _append(self._path, _line(row).encode())
      return
    self._lines.append(_line(row))
    if time.monotonic() >= self._due:
      try:
        self._write()
      except OSError as error:
        logging.warning("%s. It is tried again later", error)

  def flush(self) -> None:
    """Makes all rows survive a power cut.

    Raises:
      OSError: if they cannot be written.
    """
    if self._flushed:
      return
    if self._in_store:
      self._write()
    else:
      with open(self._path, "ab") as file:
        os.fsync(file.fileno())
      self._flushed = True

  def _write(self) -> None:
    began = time.monotonic()
    try:
      atomic.write_text(self._path, "".join(self._lines))
      self._flushed = True
    finally:
      now = time.monotonic()
      self._due = now + max(self.SECONDS, self.SHARE * (now - began))


def _line(row: dict[str, Any]) -> str:
  return json.dumps(row) + "\n"


def _append(path: epath.Path, data: bytes) -> None:
  before = None
  try:
    with open(path, "ab") as file:
      before = file.tell()
      file.write(data)
  except OSError as error:
    if before is not None:  # Leave no half line.
      with contextlib.suppress(OSError):
        os.truncate(path, before)
    raise OSError(
      f"cannot append to {path}: {atomic.reason(error)}; earlier rows remain"
    ) from error
