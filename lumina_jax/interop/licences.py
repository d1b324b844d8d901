"""Terms that come with weights, carried along wherever these go."""

from __future__ import annotations

import pathlib
import re
import shutil

# As repositories of weights call their terms and their model card.
FILES = re.compile(
  r"(LICEN[SC]E|NOTICE|USE_POLICY|TERMS|README|MODEL_?CARD)[^/]*", re.I
)


def found(source: pathlib.Path | None) -> list[pathlib.Path]:
  """Licences and model cards of a folder; a file has none of its own."""
  if source is None or not source.is_dir():
    return []
  return sorted(
    entry
    for entry in source.iterdir()
    if entry.is_file() and FILES.fullmatch(entry.name)
  )


def carry(source: pathlib.Path | None, destination: pathlib.Path) -> None:
  """Copies licences and model cards into a folder that exists.

  Args:
    source: folder of the weights; None or a file has none to carry.
    destination: what is there already stays.
  """
  for path in found(source):
    if not (destination / path.name).exists():
      shutil.copyfile(path, destination / path.name)


def replace(source: pathlib.Path, destination: pathlib.Path) -> None:
  """Copies them in place of those of weights that were there before."""
  if not (own := found(source)):
    return
  for old in {path.name for path in found(destination)} - {p.name for p in own}:
    (destination / old).unlink()
  for path in own:
    shutil.copyfile(path, destination / path.name)
