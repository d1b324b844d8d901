"""A destination: nothing there is lost, and nothing is ever half written."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new(
  path: pathlib.Path, nbytes: int, overwrite: bool
) -> Iterator[pathlib.Path]:
  """A name beside `path` to write to; renamed to it at the end.

  On any error what was written is removed and what was there stays.

  Args:
    path: where the file or folder shall appear.
    nbytes: that will be written, about.
    overwrite: whether something may be there.

  Raises:
    FileExistsError: if something is there and may not be overwritten.
    OSError: if the disk has no room.
  """
  old = path.with_name(f".{path.stem}.old{path.suffix}")
  if not path.exists() and old.exists():  # Killed between two renames.
    old.rename(path)
  remove(old)  # Of one killed after both.
  if path.exists() and not overwrite:
    raise FileExistsError(
      f"{path} exists; name another place, or overwrite it (--force, "
      "overwrite=True)"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(path.parent).free
  if nbytes > free:
    raise OSError(
      f"{path} needs {nbytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB "
      "left; make room, or save as bfloat16"
    )
  trial = path.with_name(f".{path.stem}.tmp{path.suffix}")
  remove(trial)  # Of one who was killed.
  try:
    yield trial
    if path.exists():
      path.rename(old)
    trial.rename(path)
  except BaseException:
    if old.exists():
      old.rename(path)
    raise
  finally:
    for left in (trial, old):
      remove(left)


def remove(path: pathlib.Path) -> None:
  """Removes a file or folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
