"""Images with captions: entries of a listing, and records of a scan."""

import dataclasses
from typing import Any, NamedTuple

# Keys of metadata that hold captions; the first one present is used.
CAPTION_KEYS = ("caption", "captions", "prompt", "text")


class Entry(NamedTuple):
  """An image that a source lists; its file has not been read yet.

  Attributes:
    path: file of the image.
    captions: captions of the image; () = they are in `caption_file`.
    caption_file: path of a file with the captions.
    size: height and width in pixels, if the source tells them.
  """

  path: str
  captions: tuple[str, ...] = ()
  caption_file: str = ""
  size: tuple[int, int] | None = None


class Listing(NamedTuple):
  """The entries of a source.

  Attributes:
    name: path of the source.
    entries: images, in a fixed order.
    errors: a message for each item that cannot be used.
    weight: how often a record is drawn, relative to other listings.
  """

  name: str
  entries: list[Entry]
  errors: list[str]
  weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """An image with captions.

  Attributes:
    path: file of the image, or address of an example of TFDS.
    captions: one or more captions, none of them empty.
    height: height of the upright image, in pixels.
    width: width of the upright image, in pixels.
  """

  path: str
  captions: tuple[str, ...]
  height: int
  width: int


@dataclasses.dataclass(frozen=True)
class Group:
  """The records of a listing.

  Attributes:
    name: path of the source.
    records: images that can be used.
    errors: a message for each image that cannot be used.
    weight: how often a record is drawn, relative to other groups.
  """

  name: str
  records: tuple[Record, ...]
  errors: tuple[str, ...] = ()
  weight: float = 1.0


def parse_captions(value: Any) -> tuple[str, ...]:
  """Returns the captions in a text, a list of texts, or an object of metadata.

  Raises:
    ValueError: if the value has another type, or a caption is empty.
  """
  if isinstance(value, dict):
    keys = [key for key in CAPTION_KEYS if value.get(key) is not None]
    if not keys:
      raise ValueError(f"no caption; expected one of {', '.join(CAPTION_KEYS)}")
    value = value[keys[0]]
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, (list, tuple)):
    raise ValueError(f"the caption {value!r} is not a text")
  for text in texts:
    if not isinstance(text, str):
      raise ValueError(f"the caption {text!r} is not a text")
    if not text.strip():
      raise ValueError("an empty caption")
    text.encode()  # JSON may hold half a character, which fails to tokenize.
  if not texts:
    raise ValueError("no caption in an empty list")
  return tuple(text.strip() for text in texts)
