"""Which pictures a source speaks of, and where their captions stand.

A source is a folder or a YAML file:

  pictures/a/x.jpg        with x.txt (one caption) or x.json (a text, a list of
                          texts, or an object with "caption", "captions",
                          "prompt" or "text") beside it; in folders of folders
  pictures/metadata.jsonl naming the pictures that count instead, a line each:
                          {"file_name": "a/x.jpg", "text": ...}
  data.yaml               as Lumina-T2X trains from:
                            META:
                              - path: x.jsonl (or x.json, a list)
                                root: folder of the pictures, if not this one
                                ratio: 0.5 (relative frequency, 1 if left out)
                                type: for people
                          of items {"image": ..., "conversations": [question,
                          {"from": "gpt", "value": CAPTION}]} or
                          {"path": ..., "prompt": CAPTION or CAPTIONS}

Listed pictures may have "height" and "width" too, which spare reading their
headers. Names that begin with a dot are passed over. Links to folders are not
followed, since they may lead in circles, and named among the faults.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from etils import epath

from data_pipelines import records
from lumina_jax.media import image_file as picture_file

METADATA = "metadata.jsonl"
META_KEYS = ("path", "root", "ratio", "type")
PICTURE_KEYS = ("path", "image", "image_url")
EXPECTED = (
  f"expected x.jpg with x.txt or x.json beside it, or a {METADATA} that names "
  "pictures and captions"
)
# Of a network, or of stores that epath would need further packages for.
REMOTE = ("http://", "https://", "s3://")


class Entry(NamedTuple):
  """A picture that a source speaks of, not looked at yet.

  Attributes:
    path: of the picture.
    captions: its captions; () = in the file beside it.
    beside: path of that file.
    size: height and width in pixels, if the source tells.
  """

  path: str
  captions: tuple[str, ...] = ()
  beside: str = ""
  size: tuple[int, int] | None = None


class Listing(NamedTuple):
  """Entries, what else the source has by name and reason, and a weight."""

  name: str
  entries: list[Entry]
  faults: list[str]
  weight: float = 1.0


def listings(source: str) -> list[Listing]:
  """Reads a folder, or each entry of a YAML file.

  Raises:
    FileNotFoundError: if there is no such source.
    ValueError: if it is neither, is malformed, or lies on the network.
  """
  path = located(source)
  if path.is_dir():
    return [_folder(path)]
  if not path.exists():
    raise FileNotFoundError(f"no folder or YAML file of pictures at {source}")
  if path.suffix.lower() not in (".yaml", ".yml"):
    raise ValueError(
      f"{source}: expected a folder of pictures, or a .yaml file with "
      "META: [{path: x.jsonl}]"
    )
  return _yaml(path)


def located(source: str) -> epath.Path:
  """Where a source lies, whatever folder a command is started in.

  Raises:
    ValueError: if it lies on the network.
  """
  _refuse_remote(source)
  path = epath.Path(source)
  return path if "://" in source else path.expanduser().resolve()


def beside(path: str) -> tuple[str, ...]:
  """Captions of a file beside its picture.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it holds no caption.
  """
  try:
    text = picture_file.read(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"no UTF-8 text ({error})") from error
  if path.endswith(".txt"):
    return records.captions(text)
  return records.captions(_parsed(text))


def _folder(path: epath.Path) -> Listing:
  if (path / METADATA).exists():
    entries, faults = _listed(path / METADATA, path, ("file_name",))
    return Listing(str(path), entries, faults)
  found = list(_pictures(path))
  entries = [one for one in found if isinstance(one, Entry)]
  faults = [one for one in found if isinstance(one, str)]
  return Listing(str(path), entries, faults)


def _pictures(folder: epath.Path) -> Iterator[Entry | str]:
  """Pictures in a folder and in those inside, always in the same order.

  Faults stand where the pictures would.
  """
  here = {path.name for path in folder.iterdir()}
  for name in sorted(here):
    stem, _, suffix = name.rpartition(".")
    if not name or name.startswith("."):
      continue
    if stem and f".{suffix.lower()}" in picture_file.SUFFIXES:
      texts = [t for t in (f"{stem}.txt", f"{stem}.json") if t in here]
      if len(texts) == 1:
        yield Entry(str(folder / name), beside=str(folder / texts[0]))
      else:
        fault = "no caption; expected one .txt or .json beside it"
        yield f"{folder / name}: {fault}"
    # To ask a store takes long, and texts are half of what there is.
    elif suffix not in ("txt", "json") and (folder / name).is_dir():
      if os.path.islink(folder / name):  # Stores have none.
        yield f"{folder / name}: a link to a folder; name that as a source"
      else:
        yield from _pictures(folder / name)


def _yaml(path: epath.Path) -> list[Listing]:
  try:
    data = yaml.safe_load(path.read_bytes())
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is no YAML: {error}") from error
  metas = data.get("META") if isinstance(data, dict) else None
  if not isinstance(metas, list) or not metas:
    raise ValueError(f"{path}: expected META: [{{path: x.jsonl}}]")
  found: dict[tuple[str, str], Listing] = {}
  for number, meta in enumerate(metas):
    try:
      file, root, weight = _meta(meta, path.parent)
      if (str(file), str(root)) in found:
        raise ValueError(f"path {file} is there twice; raise its ratio instead")
      entries, faults = _listed(file, root, PICTURE_KEYS)
    except ValueError as error:
      raise ValueError(f"{path}, META[{number}]: {error}") from error
    except OSError as error:
      raise type(error)(f"{path}, META[{number}]: {error}") from error
    listing = Listing(str(file), entries, faults, weight)
    found[str(file), str(root)] = listing
  return list(found.values())


def _meta(meta: Any, here: epath.Path) -> tuple[epath.Path, epath.Path, float]:
  """File, folder of its pictures, and weight."""
  if not isinstance(meta, dict) or not isinstance(meta.get("path"), str):
    raise ValueError(f"expected {{path: x.jsonl}}, not {meta!r}")
  unknown = [key for key in meta if key not in META_KEYS]
  if unknown:
    raise ValueError(f"{unknown[0]!r} is none of {', '.join(META_KEYS)}")
  ratio = 1.0 if meta.get("ratio") is None else meta["ratio"]
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
    raise ValueError(f"ratio {ratio!r} is no number")
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio {ratio}: above 0 and at most 1")
  root = meta.get("root")
  if not (root is None or isinstance(root, str)):
    raise ValueError(f"root {root!r} is no folder")
  folder = here if root is None else _joined(here, os.path.expanduser(root))
  file = _joined(here, os.path.expanduser(meta["path"]))
  return file, folder, float(ratio)


def _listed(
  file: epath.Path, root: epath.Path, keys: tuple[str, ...]
) -> tuple[list[Entry], list[str]]:
  """Entries of a JSON or JSONL file, and what of it is none."""
  entries, faults = [], []
  for place, item in _items(file):
    try:
      entries.append(_entry(_parsed(item), root, keys))
    except ValueError as error:
      faults.append(f"{file}{place}: {error}")
  return entries, faults


def _items(file: epath.Path) -> Iterator[tuple[str, Any]]:
  """Places and values of a list, or places and lines of a file."""
  if file.suffix.lower() == ".json":
    items = _parsed(picture_file.read(str(file)), f"{file}: ")
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


def _parsed(text: Any, where: str = "") -> Any:
  """JSON as values; values as they are."""
  if not isinstance(text, (bytes, str)):
    return text
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(f"{where}no JSON ({error})") from error


def _entry(item: Any, root: epath.Path, keys: tuple[str, ...]) -> Entry:
  if not isinstance(item, dict):
    raise ValueError(f"expected an object, not {item!r}")
  named = [key for key in keys if item.get(key) is not None]
  if not named:
    raise ValueError(f"no picture; expected one of {', '.join(keys)}")
  picture = item[named[0]]
  if not isinstance(picture, str) or not picture:
    raise ValueError(f"{named[0]} {picture!r} is no path")
  path = str(_joined(root, picture))
  try:
    texts = records.captions(_answer(item))
  except ValueError as error:
    raise ValueError(f"{picture}: {error}") from error
  sides = item.get("height"), item.get("width")
  if sides == (None, None):
    return Entry(path, texts)
  if any(type(side) is not int or side < 1 for side in sides):
    raise ValueError(f"{picture}: height and width {sides} are no pixels")
  return Entry(path, texts, size=sides)


def _answer(item: dict[str, Any]) -> Any:
  """What captions an item, in either form."""
  if "conversations" not in item:
    return item
  turns = item["conversations"]
  if not isinstance(turns, list) or len(turns) != 2:
    raise ValueError("conversations: expected two turns, the second a caption")
  if not isinstance(turns[1], dict) or "value" not in turns[1]:
    raise ValueError(f"the second turn {turns[1]!r} has no value")
  return turns[1]["value"]


def _joined(root: epath.Path, path: str) -> epath.Path:
  _refuse_remote(path)
  return epath.Path(path) if "://" in path else root / path


def _refuse_remote(path: str):
  if path.lower().startswith(REMOTE):
    raise ValueError(
      f"{path} cannot be read from there; copy it, or mount it as a folder"
    )
