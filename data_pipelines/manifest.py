"""Reads and writes manifests: the records that a run started with.

A manifest is a JSON Lines file: a header with the groups and their numbers of
records, then the records, group after group.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines.records import Group, Record
from lumina_jax.files import atomic

KIND, VERSION = "lumina_jax images", 1


def write_manifest(
  path: str | os.PathLike[str], groups: Sequence[Group]
) -> None:
  """Writes a manifest, whole or not at all.

  Args:
    path: the file, in a folder that exists.
    groups: groups of records, from `scan`.

  Raises:
    OSError: if it cannot be written.
  """
  atomic.write_bytes(epath.Path(path).expanduser(), b"".join(_lines(groups)))


def read_manifest(path: str | os.PathLike[str]) -> list[Group]:
  """Reads the groups of a manifest.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not a manifest, has another version, or is cut off.
  """
  with epath.Path(path).expanduser().open("rb") as lines:
    headers = _header(path, lines.readline())
    numbered = enumerate(lines, start=2)
    groups = [
      Group(
        header["name"],
        tuple(_records(path, numbered, header["records"])),
        tuple(header["errors"]),
        header["weight"],
      )
      for header in headers
    ]
    if next(numbered, None) is not None:
      raise ValueError(f"{path} has more records than its header says")
  return groups


def _lines(groups: Sequence[Group]) -> Iterator[bytes]:
  header = {
    "kind": KIND,
    "version": VERSION,
    "groups": [
      {
        "name": group.name,
        "weight": group.weight,
        "records": len(group.records),
        "errors": group.errors,
      }
      for group in groups
    ],
  }
  yield _line(header)
  for group in groups:
    for r in group.records:
      yield _line([r.path, r.captions, r.height, r.width])


def _line(value: Any) -> bytes:
  # ASCII: names of files may hold bytes that are not text.
  return (json.dumps(value) + "\n").encode("ascii")


def _header(path: os.PathLike[str] | str, line: bytes) -> list[dict[str, Any]]:
  try:
    header = json.loads(line)
    kind, version = header["kind"], header["version"]
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path} is not a manifest of images") from error
  if (kind, version) != (KIND, VERSION):
    raise ValueError(
      f"{path} is a manifest of kind {kind!r}, version {version}; this program "
      f"reads {KIND!r}, version {VERSION}: scan the images again"
    )
  return header["groups"]


def _records(
  path: os.PathLike[str] | str, lines: Iterator[tuple[int, bytes]], count: int
) -> Iterator[Record]:
  for done in range(count):
    number, line = next(lines, (0, b""))
    if not line.endswith(b"\n"):
      raise ValueError(
        f"{path} is cut off after {done} of {count} records of a group; "
        "scan the images again"
      )
    try:
      name, captions, height, width = json.loads(line)
    except (ValueError, TypeError) as error:
      raise ValueError(f"{path}:{number} is not a record: {line!r}") from error
    yield Record(name, tuple(captions), height, width)
