"""Licences and model cards, which travel with the weights."""

import pathlib
import re
import shutil

# Names of licences and model cards in repositories of weights.
FILES = re.compile(
  r"(LICEN[SC]E|NOTICE|USE_POLICY|TERMS|README|MODEL_?CARD)[^/]*", re.I
)


def find(source: pathlib.Path | None) -> list[pathlib.Path]:
  """Licences and model cards in a folder; empty for a file or None."""
  if source is None or not source.is_dir():
    return []
  return sorted(
    entry
    for entry in source.iterdir()
    if entry.is_file() and FILES.fullmatch(entry.name)
  )


def copy(source: pathlib.Path | None, destination: pathlib.Path) -> None:
  """Copies licences and model cards; existing files stay.

  Args:
    source: folder of the weights; a file or None has no licences.
    destination: folder that exists.
  """
  for path in find(source):
    if not (destination / path.name).exists():
      shutil.copyfile(path, destination / path.name)


def replace(source: pathlib.Path, destination: pathlib.Path) -> None:
  """Replaces the licences of a destination by those of a source, if any."""
  if not (new := find(source)):
    return
  for old in {path.name for path in find(destination)} - {p.name for p in new}:
    (destination / old).unlink()
  for path in new:
    shutil.copyfile(path, destination / path.name)
