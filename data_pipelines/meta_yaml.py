"""Reads the YAML files that Lumina-T2X lists its training data in.

  META:
    - path: x.jsonl (or x.json, a list)
      root: folder of the images, if it is not that of the YAML file
      ratio: 0.5 (how often a record is drawn, 1 by default)
      type: for people

Items of a list are {"image": ..., "conversations": [question, {"from": "gpt",
"value": CAPTION}]} or {"path": ..., "prompt": CAPTION or CAPTIONS}.
"""

import os
from typing import Any

import yaml
from etils import epath

from data_pipelines.annotations import join, read_list
from data_pipelines.records import Listing
from lumina_jax.files.suggest import check_name

KEYS = ("path", "root", "ratio", "type")
IMAGE_KEYS = ("path", "image", "image_url")


def list_yaml(path: epath.Path) -> list[Listing]:
  """Lists the images of each entry of META.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if one is malformed, naming the entry.
  """
  listings: dict[tuple[str, str], Listing] = {}
  for number, meta in enumerate(_metas(path)):
    try:
      file, root, weight = _parse(meta, path.parent)
      if (str(file), str(root)) in listings:
        raise ValueError(f"path {file} appears twice; raise its ratio instead")
      entries, errors = read_list(file, root, IMAGE_KEYS)
    except ValueError as error:
      raise ValueError(f"{path}, META[{number}]: {error}") from error
    except OSError as error:
      raise type(error)(f"{path}, META[{number}]: {error}") from error
    listing = Listing(str(file), entries, errors, weight)
    listings[str(file), str(root)] = listing
  return list(listings.values())


def _metas(path: epath.Path) -> list[Any]:
  try:
    data = yaml.safe_load(path.read_bytes())
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {error}") from error
  metas = data.get("META") if isinstance(data, dict) else None
  if not isinstance(metas, list) or not metas:
    raise ValueError(f"{path}: expected META: [{{path: x.jsonl}}]")
  return metas


def _parse(
  meta: Any, folder: epath.Path
) -> tuple[epath.Path, epath.Path, float]:
  """List, folder of its images, and weight of an entry."""
  if not isinstance(meta, dict) or not isinstance(meta.get("path"), str):
    raise ValueError(f"expected {{path: x.jsonl}}, not {meta!r}")
  for key in meta:
    check_name("key", key, KEYS)
  ratio = 1.0 if meta.get("ratio") is None else meta["ratio"]
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
    raise ValueError(f"ratio {ratio!r} is not a number")
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio {ratio}: must be above 0 and at most 1")
  root = meta.get("root")
  if not (root is None or isinstance(root, str)):
    raise ValueError(f"root {root!r} is not a folder")
  file = join(folder, os.path.expanduser(meta["path"]))
  if root is not None:
    folder = join(folder, os.path.expanduser(root))
  return file, folder, float(ratio)
