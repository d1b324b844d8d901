"""The format of a folder of shards, and what is wrong with one.

settings.json               what every shard is made with, written first
empty.safetensors           features of the empty caption, if there are any
shard_00000-of-00016.array_record    records, see `shard_record`
shard_00000-of-00016.json   its sidecar: checksum, sizes, bad records
manifest.json               all shards, written when the last one is there
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

VERSION = 1
SETTINGS, MANIFEST = "settings.json", "manifest.json"
EMPTY = "empty.safetensors"
SHOWN = 40  # Characters of a setting in a message.
WHERE = "path"  # Settings of this name say where things lay: they may move.


class Bad(NamedTuple):
  """A record that is left out: its name, and why."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
  """What the sidecar of a shard says.

  Attributes:
    file: name.
    bytes: size of the file.
    sha256: its checksum.
    settings: checksum of the settings that it was made with.
    extents: (h, w) of the medium of each record.
    words: tokens of the longest caption of each record; () = captions are text.
    captions: of each record; () = they have features.
    bad: records that were left out.
  """

  file: str
  bytes: int
  sha256: str
  settings: str
  extents: tuple[tuple[int, int], ...]
  words: tuple[int, ...]
  captions: tuple[tuple[str, ...], ...]
  bad: tuple[Bad, ...]

  @property
  def records(self) -> int:
    return len(self.extents)

  def listed(self) -> dict[str, Any]:
    """What the manifest says of it."""
    return {
      "file": self.file,
      "records": self.records,
      "bytes": self.bytes,
      "sha256": self.sha256,
    }


def local(folder: str | os.PathLike) -> pathlib.Path:
  """Where a folder of shards lies.

  Raises:
    ValueError: if that is a store: shards are read record by record.
  """
  if "://" in os.fspath(folder):
    raise ValueError(
      f"{folder}: shards must lie on a disk, or in a bucket that is mounted as "
      "a folder; name that folder"
    )
  return pathlib.Path(folder).expanduser()


def file_name(number: int, count: int) -> str:
  """Name of a shard of so many."""
  return f"shard_{number:05d}-of-{count:05d}.array_record"


def sidecar_path(path: pathlib.Path) -> pathlib.Path:
  """Where the sidecar of a shard's file lies."""
  return path.with_suffix(".json")


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """The manifest of a complete folder.

  Raises:
    FileNotFoundError: if it is none, or not complete yet.
    ValueError: if it cannot be read, or lies in a store.
  """
  folder = local(folder)
  path = folder / MANIFEST
  if not path.exists():
    state = "is no folder of shards"
    if (folder / SETTINGS).exists():
      state = "is not complete yet; run its lumina_jax.encode again"
    raise FileNotFoundError(f"{folder} {state} (it has no {MANIFEST})")
  manifest = read_json(path)
  if manifest.get("version") != VERSION:
    raise ValueError(
      f"{path} is of version {manifest.get('version')}, this code reads "
      f"{VERSION}; encode the pictures again"
    )
  return manifest


def read_sidecar(path: pathlib.Path) -> Shard:
  """What a sidecar says.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it cannot be read.
  """
  try:
    shard = Shard(**read_json(path))
    return dataclasses.replace(
      shard,
      extents=tuple((int(h), int(w)) for h, w in shard.extents),
      words=tuple(shard.words),
      captions=tuple(map(tuple, shard.captions)),
      bad=tuple(Bad(*bad) for bad in shard.bad),
    )
  except TypeError as error:
    raise ValueError(f"{path} is no sidecar of a shard: {error}") from error


def fault(
  folder: pathlib.Path, file: str, size: int, sha256: str | None = None
) -> str:
  """What is wrong with the file of a shard; "" = nothing.

  Args:
    folder: that it lies in.
    file: its name.
    size: that it has to have, in bytes.
    sha256: its checksum, for which all of it is read; None = is not checked.
  """
  path = folder / file
  if not path.exists():
    return f"{file} is missing"
  found = path.stat().st_size
  if found != size:
    return f"{file} has {found:,} bytes in place of {size:,}"
  if sha256 is not None and checksum(path) != sha256:
    return f"{file} has changed since it was written (another checksum)"
  return ""


def faults(
  folder: pathlib.Path, manifest: dict[str, Any], verify: bool
) -> list[str]:
  """What is wrong with the files of a folder.

  Args:
    folder: of the shards.
    manifest: that lists them.
    verify: whether to compare checksums, which reads everything.
  """
  found = []
  for shard in manifest["shards"]:
    sha256 = shard["sha256"] if verify else None
    found.append(fault(folder, shard["file"], shard["bytes"], sha256))
    if not sidecar_path(folder / shard["file"]).exists():
      found.append(f"the sidecar of {shard['file']} is missing")
  empty = manifest["empty"]
  if empty and not (folder / EMPTY).exists():
    found.append(f"{EMPTY} is missing")
  elif empty and checksum(folder / EMPTY) != empty:
    found.append(f"{EMPTY} has changed since it was written")
  return [text for text in found if text]


def check_settings(path: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Compares what a folder was begun with to what is wanted now.

  Raises:
    ValueError: if they differ, naming what does.
  """
  ours, theirs = _flat(wanted), _flat(read_json(path))
  differing = [
    f"{name}: {_short(theirs.get(name))} there, {_short(ours.get(name))} now"
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  if differing:
    raise ValueError(
      f"{path.parent} was begun with other settings ({'; '.join(differing)}); "
      "use the same ones, or name another folder"
    )


def check_network(
  folder: str | os.PathLike,
  made_with: dict[str, Any],
  channels: int,
  text_width: int,
  frozen: Any | None,
) -> None:
  """Compares what was encoded with what a network takes.

  Args:
    folder: for messages.
    made_with: settings of the folder.
    channels: C of the media that the network draws.
    text_width: E of the text features that it takes.
    frozen: its `FrozenTextConfig`; None = it has none.

  Raises:
    ValueError: if they differ, naming both.
  """
  if made_with["channels"] != channels:
    raise ValueError(
      f"{folder}: media of {made_with['channels']} channels, the network draws "
      f"{channels}; encode with the autoencoder that it is trained with"
    )
  text = made_with["text_encoder"]
  if text is None and frozen is not None:
    raise ValueError(
      f"{folder}: captions are text, the network takes features of width "
      f"{frozen.width}; encode again with --text_encoder"
    )
  if text is None:
    return
  theirs = text["frozen"]
  if frozen is None:
    raise ValueError(
      f"{folder}: captions are features of width {theirs['width']}, which this "
      "network does not take; encode again without --text_encoder, or train "
      "one with a frozen text encoder"
    )
  ours = dataclasses.asdict(frozen) | {"width": text_width}
  differing = [
    f"{name} = {theirs[name]!r} there, {ours[name]!r} in the config"
    for name in ours
    if theirs[name] != ours[name]
  ]
  if differing:
    raise ValueError(
      f"{folder}: its captions were encoded otherwise than the network reads "
      f"them: {'; '.join(differing)}"
    )


def settings_digest(settings: dict[str, Any]) -> str:
  """Checksum of settings, wherever things lay."""
  text = json.dumps(_flat(settings), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    elif name != WHERE:
      flat[f"{prefix}{name}"] = value
  return flat


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) < SHOWN else f"{text[:SHOWN]}..."


def checksum(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    ValueError: if the file holds none.
  """
  try:
    values = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if not isinstance(values, dict):
    raise ValueError(f"{path} cannot be read: no JSON object")
  return values
