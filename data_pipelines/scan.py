"""Reads the captions and sizes of all images of a source, once."""

import itertools
from collections.abc import Sequence

from data_pipelines import annotations, image_loader, meta_yaml, tfds_dataset
from data_pipelines.records import Entry, Group, Listing, Record
from data_pipelines.source import BadRecord
from data_pipelines.threads import map_ahead
from lumina_jax.files.progress import Progress

CHUNK = 64  # Entries that a thread reads at a time.
MAX_SHOWN = 3  # Errors that a message quotes.


def scan(source: str, threads: int = 16) -> list[Group]:
  """Reads the records of a source; of images it reads the headers only.

  Shows its progress.

  Args:
    source: a folder or a YAML file, see `annotations`, or an address
      `tfds:...`, see `tfds_dataset`.
    threads: threads that read; stores take long to answer.

  Returns:
    One group, or one for each entry of a YAML file. Images that cannot be
    used are left out and listed in `Group.errors`.

  Raises:
    OSError: if the source cannot be read.
    ValueError: if it is malformed, or a group has no records.
  """
  listings = list_source(source)
  total, done, groups = sum(len(one.entries) for one in listings), 0, []
  with Progress("scanning", total, unit="images", note="") as bar:
    for listing in listings:
      starts = range(0, len(listing.entries), CHUNK)
      chunks = (listing.entries[start : start + CHUNK] for start in starts)
      results: list[Record | str] = []
      for chunk in map_ahead(_read_chunk, chunks, threads):
        results += chunk
        done += len(chunk)
        bar.show(done)
      groups.append(_group(listing, results))
  return groups


def list_source(source: str) -> list[Listing]:
  """Lists a folder, the entries of a YAML file, or a dataset of TFDS.

  Raises:
    FileNotFoundError: if the source does not exist.
    ValueError: if it is none of these, is malformed, or is an address in a
      network.
  """
  if tfds_dataset.is_address(source):
    return [tfds_dataset.list_examples(source)]
  path = annotations.resolve(source)
  if path.is_dir():
    return [annotations.list_folder(path)]
  if not path.exists():
    raise FileNotFoundError(f"no folder or YAML file of images at {source}")
  if path.suffix.lower() not in (".yaml", ".yml"):
    raise ValueError(
      f"{source}: expected a folder of images, or a .yaml file with "
      "META: [{path: x.jsonl}]"
    )
  return meta_yaml.list_yaml(path)


def _group(listing: Listing, results: Sequence[Record | str]) -> Group:
  records = tuple(one for one in results if isinstance(one, Record))
  errors = tuple(
    itertools.chain(listing.errors, (e for e in results if isinstance(e, str)))
  )
  if records:
    return Group(listing.name, records, errors, listing.weight)
  message = f"no images with captions in {listing.name}"
  if not errors:
    raise ValueError(f"{message}; {annotations.EXPECTED}")
  shown = "\n  ".join(errors[:MAX_SHOWN])
  raise ValueError(
    f"{message}; {len(errors)} cannot be used, such as\n  {shown}"
  )


def _read_chunk(entries: Sequence[Entry]) -> list[Record | str]:
  """Records of entries, or the errors of those that cannot be used."""
  results: list[Record | str] = []
  for entry in entries:
    try:
      results.append(_read(entry))
    except BadRecord as error:
      results.append(str(error))
  return results


def _read(entry: Entry) -> Record:
  captions, file = entry.captions, None
  if tfds_dataset.is_address(entry.path):
    captions, file = tfds_dataset.read_example(entry.path)
  elif not captions:
    try:
      captions = annotations.read_captions(entry.caption_file)
    except (OSError, ValueError) as error:
      raise BadRecord(f"{entry.caption_file}: {error}") from error
  height, width = entry.size or image_loader.image_size(entry.path, file)
  return Record(entry.path, captions, height, width)
