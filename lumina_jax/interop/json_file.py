"""JSON files that hold one object."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if it does not hold a JSON object.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing")
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if not isinstance(values, dict):
    raise ValueError(f"{path} cannot be read: it is not a JSON object")
  return values


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """Writes a JSON object, indented."""
  path.write_text(json.dumps(values, indent=2) + "\n")
