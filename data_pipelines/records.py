"""Pictures with captions, by name and size: what a manifest lists."""

from __future__ import annotations

import dataclasses
from typing import Any

# In metadata, by the names that they go under; the first that is there counts.
CAPTION_KEYS = ("caption", "captions", "prompt", "text")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A picture with captions.

  Attributes:
    path: of the picture, or name of an example; see `picture_file`.
    captions: at least one, none empty.
    height: pixels, the right way up.
    width: likewise.
  """

  path: str
  captions: tuple[str, ...]
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class Group:
  """The records of one source.

  Attributes:
    name: the source, as it was named.
    records: that can be used.
    faults: those left out, each by its name and the reason.
    weight: how often a record of it is drawn, relative to other groups.
  """

  name: str
  records: tuple[Record, ...]
  faults: tuple[str, ...] = ()
  weight: float = 1.0


def captions(value: Any) -> tuple[str, ...]:
  """Captions of a text, a list of texts, or an object that names them.

  Raises:
    ValueError: if it is none of these, or one is empty.
  """
  if isinstance(value, dict):
    named = [key for key in CAPTION_KEYS if value.get(key) is not None]
    if not named:
      raise ValueError(f"no caption; expected one of {', '.join(CAPTION_KEYS)}")
    value = value[named[0]]
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, (list, tuple)):
    raise ValueError(f"the caption {value!r} is no text")
  for text in texts:
    if not isinstance(text, str):
      raise ValueError(f"the caption {text!r} is no text")
    if not text.strip():
      raise ValueError("an empty caption")
    text.encode()  # Of JSON: half a character cannot be tokenized.
  if not texts:
    raise ValueError("no caption in an empty list")
  return tuple(text.strip() for text in texts)
