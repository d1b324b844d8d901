"""Looks at every picture of a source once: its captions, and its size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from data_pipelines import annotations
from data_pipelines.annotations import Entry, Listing
from data_pipelines.records import Group, Record
from data_pipelines.source import BadRecord
from lumina_jax.media import image_file as picture_file

CHUNK = 64  # entries that a thread takes at a time
AHEAD = 4  # chunks of each thread on their way, so that memory stays small
SHOWN = 3  # faults that a message names


def scan(
  source: str,
  progress: Callable[[int, int], None] | None = None,
  threads: int = 16,
) -> list[Group]:
  """Reads the records of a source, sizes by the pictures' headers alone.

  Args:
    source: a folder or a YAML file, see `annotations`, or an address
      `tfds:...`, see `tfds_source`.
    progress: called with (pictures looked at, pictures there are).
    threads: that read; files of stores take long to answer.

  Returns:
    One group, or one for each entry of a YAML file. A picture that cannot be
    used is left out and its fault told in the group.

  Raises:
    OSError: if the source cannot be read.
    ValueError: if it is malformed, or a group has no record.
  """
  if source.startswith("tfds:"):
    from data_pipelines import tfds_source  # Slow to import.

    listings = [tfds_source.listing(source)]
  else:
    listings = annotations.listings(source)
  total, done, groups = sum(len(found.entries) for found in listings), 0, []
  for found in listings:
    records, faults = [], list(found.faults)
    for chunk in _measured(found.entries, threads):
      records += [one for one in chunk if isinstance(one, Record)]
      faults += [one for one in chunk if isinstance(one, str)]
      done += len(chunk)
      if progress is not None:
        progress(done, total)
    groups.append(_group(found, records, faults))
  return groups


def _group(
  found: Listing, records: Sequence[Record], faults: Sequence[str]
) -> Group:
  if records:
    return Group(found.name, tuple(records), tuple(faults), found.weight)
  message = f"no pictures with captions in {found.name}"
  if not faults:
    raise ValueError(f"{message}; {annotations.EXPECTED}")
  shown = "\n  ".join(faults[:SHOWN])
  count = f"{len(faults)} cannot be used, such as"
  raise ValueError(f"{message}; {count}\n  {shown}")


def _measured(
  entries: Sequence[Entry], threads: int
) -> Iterator[list[Record | str]]:
  """Records, or faults, in the order of their entries, a few at a time."""
  starts = range(0, len(entries), CHUNK)
  chunks = (entries[start : start + CHUNK] for start in starts)
  with ThreadPoolExecutor(threads) as pool:
    while window := list(itertools.islice(chunks, AHEAD * threads)):
      yield from pool.map(lambda chunk: [_measure(e) for e in chunk], window)


def _measure(entry: Entry) -> Record | str:
  """The record of an entry, or what is wrong with it."""
  try:
    if entry.path.startswith("tfds:"):
      from data_pipelines import tfds_source

      return tfds_source.record(entry.path)
    captions = entry.captions or _beside(entry)
    height, width = entry.size or picture_file.size(entry.path)
  except BadRecord as fault:
    return str(fault)
  return Record(entry.path, captions, height, width)


def _beside(entry: Entry) -> tuple[str, ...]:
  try:
    return annotations.beside(entry.beside)
  except (OSError, ValueError) as error:
    raise BadRecord(f"{entry.beside}: {error}") from error
