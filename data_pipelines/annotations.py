"""Lists the images of a folder or a YAML file, and where their captions are.

  images/a/x.jpg          with x.txt (one caption) or x.json (a text, a list of
                          texts, or an object with "caption", "captions",
                          "prompt" or "text") beside it, in nested folders
  images/metadata.jsonl   lists the images to use instead, one a line:
                          {"file_name": "a/x.jpg", "text": ...}
  data.yaml               the format that Lumina-T2X trains from; see
                          `meta_yaml`

Lists may also give "height" and "width", which saves reading the headers of
the images. Names that begin with a dot are skipped. Links to folders are
reported as errors and not followed, since they may form circles.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.records import Entry, Listing, parse_captions
from lumina_jax.files import reading
from lumina_jax.media import image_file

METADATA = "metadata.jsonl"
EXPECTED = (
  f"expected x.jpg with x.txt or x.json beside it, or a {METADATA} that lists "
  "images and captions"
)
# Addresses in a network, or in stores that epath needs more packages for.
REMOTE = ("http://", "https://", "s3://")


def resolve(source: str) -> epath.Path:
  """Returns the absolute path of a source.

  Raises:
    ValueError: if it is an address in a network.
  """
  check_local(source)
  path = epath.Path(source)
  return path if "://" in source else path.expanduser().resolve()


def check_local(path: str) -> None:
  """Checks that a path is no address in a network.

  Raises:
    ValueError: if it is.
  """
  if path.lower().startswith(REMOTE):
    raise ValueError(
      f"{path} cannot be read over the network; copy it, or mount it as a "
      "folder"
    )


def list_folder(path: epath.Path) -> Listing:
  """Lists the images of a folder, by its metadata file if it has one.

  Raises:
    OSError: if the folder cannot be read.
  """
  if (path / METADATA).exists():
    entries, errors = read_list(path / METADATA, path, ("file_name",))
    return Listing(str(path), entries, errors)
  items = list(_walk(path))
  entries = [item for item in items if isinstance(item, Entry)]
  errors = [item for item in items if isinstance(item, str)]
  return Listing(str(path), entries, errors)


def read_captions(path: str) -> tuple[str, ...]:
  """Returns the captions of a .txt or .json file.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it holds no caption.
  """
  try:
    text = reading.read_bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"not UTF-8 text ({error})") from error
  return parse_captions(text if path.endswith(".txt") else _from_json(text))


def read_list(
  file: epath.Path, root: epath.Path, keys: tuple[str, ...]
) -> tuple[list[Entry], list[str]]:
  """Reads a JSON or JSONL file that lists images.

  Args:
    file: the list.
    root: folder that paths of images are relative to.
    keys: names under which items give the path of their image.

  Returns:
    The entries, and a message for each item that cannot be used.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is not such a file.
  """
  entries, errors = [], []
  for place, item in _items(file):
    try:
      entries.append(_entry(_from_json(item), root, keys))
    except ValueError as error:
      errors.append(f"{file}{place}: {error}")
  return entries, errors


def join(root: epath.Path, path: str) -> epath.Path:
  """Returns a path, relative to a root unless it is absolute.

  Raises:
    ValueError: if the path is an address in a network.
  """
  check_local(path)
  return epath.Path(path) if "://" in path else root / path


def _walk(folder: epath.Path) -> Iterator[Entry | str]:
  """Entries of a folder and its subfolders, or errors, in a fixed order."""
  names = {path.name for path in folder.iterdir()}
  for name in sorted(names):
    stem, _, suffix = name.rpartition(".")
    if not name or name.startswith("."):
      continue
    if stem and f".{suffix.lower()}" in image_file.SUFFIXES:
      texts = [t for t in (f"{stem}.txt", f"{stem}.json") if t in names]
      if len(texts) == 1:
        path = str(folder / name)
        yield Entry(path, caption_file=str(folder / texts[0]))
      else:
        error = "no caption; expected one .txt or .json beside it"
        yield f"{folder / name}: {error}"
    # Stores answer slowly, and half of the files are texts: ask for no others.
    elif suffix not in ("txt", "json") and (folder / name).is_dir():
      if os.path.islink(folder / name):  # Stores have no links.
        yield f"{folder / name}: a link to a folder; name that as a source"
      else:
        yield from _walk(folder / name)


def _items(file: epath.Path) -> Iterator[tuple[str, Any]]:
  """Places and values of a JSON list, or places and lines of a JSONL file."""
  if file.suffix.lower() == ".json":
    items = _from_json(reading.read_bytes(str(file)), f"{file}: ")
    if not isinstance(items, list):
      raise ValueError(f"{file}: expected a list of objects")
    yield from ((f"[{number}]", item) for number, item in enumerate(items))
    return
  if file.suffix.lower() != ".jsonl":
    raise ValueError(f"{file}: expected a .json or .jsonl file")
  with file.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      if line.strip():
        yield f":{number}", line


def _from_json(text: Any, prefix: str = "") -> Any:
  """Parses bytes and texts; other values pass."""
  if not isinstance(text, (bytes, str)):
    return text
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(f"{prefix}not JSON ({error})") from error


def _entry(item: Any, root: epath.Path, keys: tuple[str, ...]) -> Entry:
  if not isinstance(item, dict):
    raise ValueError(f"expected an object, not {item!r}")
  present = [key for key in keys if item.get(key) is not None]
  if not present:
    raise ValueError(f"no image; expected one of {', '.join(keys)}")
  image = item[present[0]]
  if not isinstance(image, str) or not image:
    raise ValueError(f"{present[0]} {image!r} is not a path")
  path = str(join(root, image))
  try:
    captions = parse_captions(_answer(item))
  except ValueError as error:
    raise ValueError(f"{image}: {error}") from error
  size = item.get("height"), item.get("width")
  if size == (None, None):
    return Entry(path, captions)
  if any(type(side) is not int or side < 1 for side in size):
    raise ValueError(f"{image}: height and width {size} are not pixels")
  return Entry(path, captions, size=size)


def _answer(item: dict[str, Any]) -> Any:
  """The captions of an item: the second turn of a conversation, or a key."""
  if "conversations" not in item:
    return item
  turns = item["conversations"]
  if not isinstance(turns, list) or len(turns) != 2:
    raise ValueError("conversations: expected two turns, the second a caption")
  if not isinstance(turns[1], dict) or "value" not in turns[1]:
    raise ValueError(f"the second turn {turns[1]!r} has no value")
  return turns[1]["value"]
