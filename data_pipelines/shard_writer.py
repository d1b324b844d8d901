"""Writes a folder of shards, each of them whole or not at all.

A shard gets its name once its data are on the disk, and its sidecar after that.
So whatever has a sidecar is complete, and an interrupted run continues there.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines import shard_checks, shard_folder, shard_record
from data_pipelines.shard_folder import (
  EMPTY,
  MANIFEST,
  SETTINGS,
  BadRecordInfo,
  ShardInfo,
  sidecar_path,
)
from data_pipelines.shard_record import ShardRecord

OPTIONS = "group_size:1"  # Each record can be read alone.


class ShardWriter:
  """A folder that one process, or several, writes shards to.

  Attributes:
    path: the folder.
    count: total number of shards.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    settings: dict[str, Any],
    count: int,
    process: int = 0,
  ):
    """Makes the folder, or continues one.

    Args:
      path: the folder.
      settings: JSON values that the bytes of shards depend on.
      count: total number of shards.
      process: number of this process among those that write.

    Raises:
      ValueError: if the folder was started with other settings, naming them.
    """
    self.path = pathlib.Path(path).expanduser()
    self.count, self._process = count, process
    self._settings = json.loads(json.dumps(settings))  # As read back.
    self._digest = shard_checks.settings_digest(self._settings)
    self.path.mkdir(parents=True, exist_ok=True)
    existing = self.path / SETTINGS
    if not existing.exists():
      self._write_file(existing, _to_json(self._settings))
    shard_checks.check_settings(existing, self._settings)

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps other processes of this number out, and removes their leftovers.

    Raises:
      OSError: if another process of this number is running.
    """
    path = self.path / f".process_{self._process}.lock"
    with path.open("w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise OSError(
          f"{self.path}: process {self._process} is already running; wait for "
          "it, or give each process its own --process_id"
        ) from error
      except OSError:
        pass  # Some network drives have no locks.
      for leftover in self.path.glob(self._temporary("*")):
        leftover.unlink(missing_ok=True)
      try:
        yield
      finally:
        path.unlink(missing_ok=True)

  def file(self, number: int) -> str:
    """Name of the file of a shard."""
    return shard_folder.file_name(number, self.count)

  def find(self, number: int) -> ShardInfo | None:
    """Returns a shard that is complete by its checksum, else None.

    Raises:
      ValueError: if the shard was made with other settings.
    """
    shard = self._sidecar(number)
    if shard is None:
      return None
    error = shard_checks.file_error(
      self.path, shard.file, shard.bytes, shard.sha256
    )
    return None if error else shard

  def write(
    self, number: int, records: Iterable[ShardRecord | BadRecordInfo]
  ) -> ShardInfo:
    """Writes a shard, then its sidecar; an error leaves neither.

    Args:
      number: number of the shard.
      records: records in order; bad ones are listed in the sidecar.

    Raises:
      OSError: if the disk is full.
    """
    path = self._path(number)
    sidecar_path(path).unlink(missing_ok=True)
    temporary = self.path / self._temporary(path.name)
    try:
      columns = _write_records(temporary, records)
      shard = ShardInfo(
        file=path.name,
        bytes=temporary.stat().st_size,
        sha256=shard_checks.checksum(temporary),
        settings=self._digest,
        **columns,
      )
      _publish(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
    text = json.dumps(dataclasses.asdict(shard))
    self._write_file(sidecar_path(path), text)
    return shard

  @property
  def has_empty(self) -> bool:
    """Whether features of the empty caption exist."""
    return (self.path / EMPTY).exists()

  def write_empty(self, features: np.ndarray) -> None:
    """Writes features `bf16[S, E]` of the empty caption."""
    data = shard_record.pack_arrays({"features": features}, {})
    self._write_file(self.path / EMPTY, data)

  def finish(self, errors: Sequence[str] = ()) -> list[str]:
    """Writes the manifest if all shards exist; returns missing files.

    The last process does so; if several finish at once, each writes the same.

    Args:
      errors: messages of items of the source that could not be scanned.

    Raises:
      ValueError: if a shard was made with other settings, or no record could
        be used.
    """
    shards = [self._sidecar(number) for number in range(self.count)]
    missing = [
      self.file(number)
      for number, shard in enumerate(shards)
      if shard is None
      or shard_checks.file_error(self.path, shard.file, shard.bytes)
    ]
    if not missing:
      manifest = _to_json(self._manifest(shards, errors))
      self._write_file(self.path / MANIFEST, manifest)
    return missing

  def _manifest(
    self, shards: list[ShardInfo], errors: Sequence[str]
  ) -> dict[str, Any]:
    records = sum(shard.records for shard in shards)
    if not records:
      raise ValueError(f"{self.path}: none of the records could be used")
    empty = self.path / EMPTY
    return {
      "version": shard_folder.VERSION,
      "made_with": self._settings,
      "records": records,
      "bytes": sum(shard.bytes for shard in shards),
      "empty": shard_checks.checksum(empty) if empty.exists() else None,
      "shards": [shard.summary() for shard in shards],
      "bad": [bad._asdict() for shard in shards for bad in shard.bad],
      "errors": list(errors),
    }

  def _sidecar(self, number: int) -> ShardInfo | None:
    path = sidecar_path(self._path(number))
    if not path.exists():
      return None
    shard = shard_folder.read_sidecar(path)
    if shard.settings != self._digest:
      raise ValueError(
        f"{path} was made with other settings than the rest of its folder; "
        "remove it, or name another folder"
      )
    return shard

  def _path(self, number: int) -> pathlib.Path:
    return self.path / self.file(number)

  def _temporary(self, name: str) -> str:
    return f".{name}.of_process_{self._process}"

  def _write_file(self, path: pathlib.Path, data: bytes | str) -> None:
    # JSON is ASCII: names of files may hold bytes that are not text.
    temporary = self.path / self._temporary(path.name)
    try:
      temporary.write_bytes(data.encode() if isinstance(data, str) else data)
      _publish(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


def _write_records(
  path: pathlib.Path, records: Iterable[ShardRecord | BadRecordInfo]
) -> dict[str, tuple]:
  """Writes good records; returns columns of a sidecar."""
  extents, words, captions, bad = [], [], [], []
  with _disk_errors(path):
    writer = ArrayRecordWriter(str(path), OPTIONS)
  try:
    for record in records:
      if isinstance(record, BadRecordInfo):
        bad.append(record)
        continue
      with _disk_errors(path):
        writer.write(shard_record.pack(record))
      extents.append(record.extents)
      if record.features:
        words.append(max(map(len, record.features)))
      else:
        captions.append(record.captions)
  finally:
    with _disk_errors(path):
      writer.close()
  columns = dict(extents=extents, words=words, captions=captions, bad=bad)
  return {name: tuple(column) for name, column in columns.items()}


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what ArrayRecordWriter raises on a full disk into an OSError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(
      f"{path.parent}: a shard could not be written ({error}); free some space "
      "and run the same command again, complete shards are kept"
    ) from error


def _publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a file after its data, and before its name, reach the disk."""
  _sync(temporary)
  temporary.replace(path)
  _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _to_json(values: dict[str, Any]) -> str:
  return json.dumps(values, indent=2) + "\n"
