"""The format of a folder of shards.

settings.json               settings of all shards, written first
empty.safetensors           features of the empty caption, if there are any
shard_00000-of-00016.array_record    records, see `shard_record`
shard_00000-of-00016.json   its sidecar: checksum, sizes, bad records
manifest.json               lists all shards, written after the last one
"""

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

from lumina_jax.files.json_file import read_json

VERSION = 1
SETTINGS, MANIFEST = "settings.json", "manifest.json"
EMPTY = "empty.safetensors"


class BadRecordInfo(NamedTuple):
  """A record that is left out: its name, and why."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class ShardInfo:
  """The sidecar of a shard.

  Attributes:
    file: name of the shard's file.
    bytes: size of the file.
    sha256: checksum of the file.
    settings: checksum of the settings that the shard was made with.
    extents: extents of each record, e.g. (height, width).
    words: tokens of the longest caption of each record; () = captions are text.
    captions: captions of each record; () = captions are features.
    bad: records that were left out.
  """

  file: str
  bytes: int
  sha256: str
  settings: str
  extents: tuple[tuple[int, ...], ...]
  words: tuple[int, ...]
  captions: tuple[tuple[str, ...], ...]
  bad: tuple[BadRecordInfo, ...]

  @property
  def records(self) -> int:
    """Number of records, without bad ones."""
    return len(self.extents)

  def summary(self) -> dict[str, Any]:
    """The shard's entry in the manifest."""
    return {
      "file": self.file,
      "records": self.records,
      "bytes": self.bytes,
      "sha256": self.sha256,
    }


def local_path(folder: str | os.PathLike) -> pathlib.Path:
  """Returns the path of a folder of shards.

  Raises:
    ValueError: if it lies in a store: shards are read record by record.
  """
  if "://" in os.fspath(folder):
    raise ValueError(
      f"{folder}: shards must lie on a disk, or in a bucket that is mounted as "
      "a folder; name that folder"
    )
  return pathlib.Path(folder).expanduser()


def file_name(number: int, count: int) -> str:
  """Name of shard `number` of `count`."""
  return f"shard_{number:05d}-of-{count:05d}.array_record"


def sidecar_path(path: pathlib.Path) -> pathlib.Path:
  """Path of the sidecar of a shard's file."""
  return path.with_suffix(".json")


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the manifest of a complete folder.

  Raises:
    FileNotFoundError: if it is not a folder of shards, or not complete yet.
    ValueError: if the manifest cannot be read, or lies in a store.
  """
  folder = local_path(folder)
  path = folder / MANIFEST
  if not path.exists():
    state = "is not a folder of shards"
    if (folder / SETTINGS).exists():
      state = "is not complete yet; run its lumina_jax.encode command again"
    raise FileNotFoundError(f"{folder} {state} (it has no {MANIFEST})")
  manifest = read_json(path)
  if manifest.get("version") != VERSION:
    raise ValueError(
      f"{path} has version {manifest.get('version')}, this program reads "
      f"version {VERSION}; encode the data again"
    )
  return manifest


def read_sidecar(path: pathlib.Path) -> ShardInfo:
  """Reads a sidecar.

  Raises:
    FileNotFoundError: if it does not exist.
    ValueError: if it cannot be read.
  """
  try:
    shard = ShardInfo(**read_json(path))
    return dataclasses.replace(
      shard,
      extents=tuple(tuple(map(int, sizes)) for sizes in shard.extents),
      words=tuple(shard.words),
      captions=tuple(map(tuple, shard.captions)),
      bad=tuple(BadRecordInfo(*bad) for bad in shard.bad),
    )
  except TypeError as error:
    raise ValueError(f"{path} is not a sidecar of a shard: {error}") from error
