"""Writes a folder of shards, each of them whole or not at all.

A shard gets its name when it is on the disk, and its sidecar after that; so
whatever has a sidecar is complete, and an interrupted run goes on behind it.
"""

from __future__ import annotations

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

from data_pipelines import shard_record, shards
from data_pipelines.shard_record import Record
from data_pipelines.shards import Bad, Shard

OPTIONS = "group_size:1"  # Each record can be read alone.


class ShardWriter:
  """Shards that are being written, by one process or several.

  Attributes:
    path: of their folder.
    count: how many there will be.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    settings: dict[str, Any],
    count: int,
    process: int = 0,
  ):
    """Makes the folder, or goes on with one.

    Args:
      path: of the folder.
      settings: JSON values: all that the bytes of shards depend on.
      count: of the shards.
      process: number of this process among those that write now.

    Raises:
      ValueError: if the folder was begun with other settings, naming them.
    """
    self.path = pathlib.Path(path).expanduser()
    self.count, self._process = count, process
    self._settings = json.loads(json.dumps(settings))  # As it is read again.
    self._digest = shards.settings_digest(self._settings)
    self.path.mkdir(parents=True, exist_ok=True)
    begun = self.path / shards.SETTINGS
    if not begun.exists():
      self._write_file(begun, _json(self._settings))
    shards.check_settings(begun, self._settings)

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Keeps others of this number out, and removes what one left half done.

    Raises:
      OSError: if another one is at work.
    """
    path = self.path / f".process_{self._process}.lock"
    with path.open("w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise OSError(
          f"{self.path}: process {self._process} is at work here already; wait "
          "for it, or give each its own --process_id"
        ) from error
      except OSError:
        pass  # Some network drives know no locks.
      for left in self.path.glob(self._trial("*")):
        left.unlink(missing_ok=True)
      try:
        yield
      finally:
        path.unlink(missing_ok=True)

  def file(self, number: int) -> str:
    """Name of a shard."""
    return shards.file_name(number, self.count)

  def find(self, number: int) -> Shard | None:
    """A shard that is complete, by its checksum; None = has to be written.

    Raises:
      ValueError: if it was made with other settings.
    """
    shard = self._sidecar(number)
    if shard is None:
      return None
    wrong = shards.fault(self.path, shard.file, shard.bytes, shard.sha256)
    return None if wrong else shard

  def write(self, number: int, records: Iterable[Record | Bad]) -> Shard:
    """Writes a shard, then its sidecar; what stops it leaves neither.

    Args:
      number: of the shard.
      records: in order; bad ones go into the sidecar.

    Raises:
      OSError: if the disk has no room.
    """
    path = self._path(number)
    shards.sidecar_path(path).unlink(missing_ok=True)
    trial = self.path / self._trial(path.name)
    try:
      columns = _write_records(trial, records)
      shard = Shard(
        file=path.name,
        bytes=trial.stat().st_size,
        sha256=shards.checksum(trial),
        settings=self._digest,
        **columns,
      )
      _publish(trial, path)
    finally:
      trial.unlink(missing_ok=True)
    text = json.dumps(dataclasses.asdict(shard), ensure_ascii=False)
    self._write_file(shards.sidecar_path(path), text)
    return shard

  @property
  def has_empty(self) -> bool:
    """Whether features of the empty caption are there."""
    return (self.path / shards.EMPTY).exists()

  def write_empty(self, features: np.ndarray) -> None:
    """Writes features `bf16[S, E]` of the empty caption."""
    data = shard_record.pack_arrays({"features": features}, {})
    self._write_file(self.path / shards.EMPTY, data)

  def finish(self, faults: Sequence[str] = ()) -> list[str]:
    """Writes the manifest if all shards are there; returns those that miss.

    Whoever comes last does it; of several at once each writes the same.

    Args:
      faults: of the source, what was no record to begin with.

    Raises:
      ValueError: if a shard was made with other settings, or none of the
        records could be used.
    """
    found = [self._sidecar(number) for number in range(self.count)]
    missing = [
      self.file(number)
      for number, shard in enumerate(found)
      if shard is None or shards.fault(self.path, shard.file, shard.bytes)
    ]
    if not missing:
      manifest = _json(self._manifest(found, faults))
      self._write_file(self.path / shards.MANIFEST, manifest)
    return missing

  def _manifest(
    self, found: list[Shard], faults: Sequence[str]
  ) -> dict[str, Any]:
    records = sum(shard.records for shard in found)
    if not records:
      raise ValueError(f"{self.path}: none of the records could be used")
    empty = self.path / shards.EMPTY
    return {
      "version": shards.VERSION,
      "made_with": self._settings,
      "records": records,
      "bytes": sum(shard.bytes for shard in found),
      "empty": shards.checksum(empty) if empty.exists() else None,
      "shards": [shard.listed() for shard in found],
      "bad": [bad._asdict() for shard in found for bad in shard.bad],
      "faults": list(faults),
    }

  def _sidecar(self, number: int) -> Shard | None:
    path = shards.sidecar_path(self._path(number))
    if not path.exists():
      return None
    shard = shards.read_sidecar(path)
    if shard.settings != self._digest:
      raise ValueError(
        f"{path} was made with other settings than the rest of its folder; "
        "remove it, or name another folder"
      )
    return shard

  def _path(self, number: int) -> pathlib.Path:
    return self.path / self.file(number)

  def _trial(self, name: str) -> str:
    return f".{name}.of_process_{self._process}"

  def _write_file(self, path: pathlib.Path, data: bytes | str) -> None:
    trial = self.path / self._trial(path.name)
    try:
      trial.write_bytes(data.encode() if isinstance(data, str) else data)
      _publish(trial, path)
    finally:
      trial.unlink(missing_ok=True)


def _write_records(
  path: pathlib.Path, records: Iterable[Record | Bad]
) -> dict[str, tuple]:
  """Writes good records; returns columns of a sidecar."""
  extents, words, captions, bad = [], [], [], []
  writer = _Writer(path)
  try:
    for record in records:
      if isinstance(record, Bad):
        bad.append(record)
        continue
      writer.add(shard_record.pack(record))
      extents.append(record.extents)
      if record.features:
        words.append(max(map(len, record.features)))
      else:
        captions.append(record.captions)
  finally:
    writer.close()
  columns = dict(extents=extents, words=words, captions=captions, bad=bad)
  return {name: tuple(column) for name, column in columns.items()}


class _Writer:
  """ArrayRecordWriter with the errors that a full disk should raise."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    with self._said():
      self._writer = ArrayRecordWriter(str(path), OPTIONS)

  def add(self, data: bytes) -> None:
    with self._said():
      self._writer.write(data)

  def close(self) -> None:
    with self._said():
      self._writer.close()

  @contextlib.contextmanager
  def _said(self) -> Iterator[None]:
    try:
      yield
    except RuntimeError as error:
      raise OSError(
        f"{self._path.parent}: a shard could not be written ({error}); make "
        "room and run the same again, what is complete stays"
      ) from error


def _publish(trial: pathlib.Path, path: pathlib.Path) -> None:
  """Gives a file its name once it is on the disk, and makes that last."""
  _sync(trial)
  trial.replace(path)
  _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _json(values: dict[str, Any]) -> str:
  return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
