"""JSON files, indented and written whole."""

import json
from typing import Any

from etils import epath

from lumina_jax.files import atomic


def read_json(path: epath.PathLike) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    FileNotFoundError: if the file does not exist.
    OSError: if it cannot be read.
    ValueError: if it does not hold a JSON object.
  """
  try:
    text = atomic.read_text(path)
    values = text and json.loads(text)
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if text is None:
    raise FileNotFoundError(f"{path} is missing")
  if not isinstance(values, dict):
    raise ValueError(f"{path} cannot be read: it is not a JSON object")
  return values


def write_json(path: epath.PathLike, values: Any) -> None:
  """Writes values as indented JSON, whole or not at all.

  Raises:
    OSError: if it cannot be written.
  """
  atomic.write_text(path, json.dumps(values, indent=2) + "\n")
