"""A file that grows by lines, on a disk or in a store."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable

from etils import epath

from lumina_jax import whole_file


class Lines:
  """A text file that one writer adds lines to; a death leaves it readable.

  A disk appends: a line is in the file when `append` returns, though a death
  may cut it short. A store cannot: there lines gather, and now and then the
  object is written whole. Between two such times pass at least `SECONDS`, since
  stores limit how often one object may change, and `PATIENCE` times what the
  last one took, so that they take 1 % of the time at most, however long the
  file is. A death loses what came after the last `flush` at most.
  """

  SECONDS = 30.0
  PATIENCE = 100

  def __init__(self, path: epath.PathLike, lines: Iterable[str] = ()):
    """Begins the file anew.

    Args:
      path: of the file, in a folder that exists.
      lines: that it begins with, none with a line break.

    Raises:
      OSError: if it cannot be written.
    """
    self._path = epath.Path(path)
    self._in_store = whole_file.in_store(path)
    self._lines = [f"{line}\n" for line in lines]
    self._write()
    if not self._in_store:
      self._lines.clear()  # The disk has them.

  def append(self, line: str) -> None:
    """Adds a line.

    Raises:
      OSError: if a disk does not take it. That a store does not is a warning;
        the line waits for the next time.
    """
    self._flushed = False
    if not self._in_store:
      _append(self._path, f"{line}\n".encode())
      return
    self._lines.append(f"{line}\n")
    if time.monotonic() >= self._due:
      try:
        self._write()
      except OSError as error:
        logging.warning("%s. It is tried again later", error)

  def flush(self) -> None:
    """From here on not even a power cut loses what was appended.

    Raises:
      OSError: if it cannot be written.
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
      whole_file.write_text(self._path, "".join(self._lines))
      self._flushed = True
    finally:
      now = time.monotonic()
      self._due = now + max(self.SECONDS, self.PATIENCE * (now - began))


def _append(path: epath.Path, data: bytes) -> None:
  before = None
  try:
    with open(path, "ab") as file:
      before = file.tell()
      file.write(data)
  except OSError as error:
    if before is not None:  # Half a line helps nobody.
      with contextlib.suppress(OSError):
        os.truncate(path, before)
    raise OSError(
      f"cannot append to {path}: {whole_file.reason(error)}; the lines before "
      "stay"
    ) from error
