"""A source of samples from a folder of shards.

Planning reads sidecars only; a sample reads its own record only. Data workers
stay light: neither JAX nor an encoder is imported.
"""

import os
import pathlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines import shard_checks, shard_folder, shard_record
from data_pipelines.shard_record import ShardRecord
from data_pipelines.source import BadRecord, Draw, Sample, Size, Stream, locate
from lumina_jax.tokens import Grid

WORD_STEP = 8  # Captions share a kind if they share this multiple of tokens.
MAX_OPEN = 256  # Open files of a process; systems mostly allow 1024.
MAX_SHOWN = 5  # Errors that a message quotes.
NO_READAHEAD = "readahead_buffer_size:0"  # Records are read in random order.


class ShardSource:
  """A source of encoded samples; see `Source`.

  Threads and processes may share it.

  Attributes:
    sizes: tokens, words and samples (1) that each record takes at most.
    kinds: extents and words of each record.
    made_with: settings of the command that wrote the folder.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    grid: Callable[..., Grid],
    tokenize: Callable[[str], np.ndarray] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
  ):
    """Opens a folder.

    Args:
      folder: folder that `lumina_jax.encode` wrote.
      grid: extents, e.g. (h, w), -> layout, e.g. `ModelConfig.grid`.
      tokenize: caption -> codes, e.g. `Network.tokenize`; needed if captions
        are stored as text, unused if they are features.
      dropout: share of draws whose caption is "".
      seed: seed of latents and captions.

    Raises:
      FileNotFoundError: if it is not a folder of shards, or not complete.
      ValueError: if it lies in a store, files are missing or have changed, a
        patch does not divide the extents, or captions are text and nothing
        tokenizes them.
    """
    if not 0 <= dropout <= 1:
      raise ValueError(f"dropout = {dropout}: must be a share from 0 to 1")
    self._folder = shard_folder.local_path(folder).absolute()
    manifest = shard_folder.read_manifest(self._folder)
    _check_files(self._folder, manifest)
    self.made_with: dict[str, Any] = manifest["made_with"]
    self._files = [shard["file"] for shard in manifest["shards"]]
    self._ends = np.cumsum([shard["records"] for shard in manifest["shards"]])
    self._grid, self._tokenize = grid, tokenize
    self._dropout, self._seed = dropout, seed
    self._empty = self._read_empty() if manifest["empty"] else None
    if self._empty is None and tokenize is None:
      raise ValueError(
        f"{folder} has captions as text: pass `tokenize`, or encode it with "
        "--text_encoder"
      )
    extents, words = self._read_sidecars(manifest["shards"])
    tokens = {pair: self._count_tokens(pair) for pair in set(extents)}
    words = _round_up(words)
    self.sizes: Sequence[Size] = _deduplicate(
      (tokens[pair], count, 1)
      for pair, count in zip(extents, words, strict=True)
    )
    self.kinds: Sequence[tuple[int, ...]] = _deduplicate(
      (*pair, count) for pair, count in zip(extents, words, strict=True)
    )
    self._readers = _Readers(self._folder)

  def check_network(
    self, channels: int, text: Mapping[str, Any] | None = None
  ) -> None:
    """Compares what was encoded with what a network takes.

    Args:
      channels: channels C of the latents of the network.
      text: fields of its `TextFeaturesConfig`; None = the network encodes
        captions itself.

    Raises:
      ValueError: if they differ, naming both values.
    """
    shard_checks.check_network(self._folder, self.made_with, channels, text)

  def sample(self, draw: Draw) -> Sample:
    """Samples the latents of a record, chooses a caption, and may drop it.

    Raises:
      BadRecord: if the record cannot be read.
    """
    record, rng = self._read(draw.record), self._rng(draw)
    chosen, caption = self._choose_caption(record, rng)
    if self._empty is None:
      text = self._tokenize(caption)
    else:
      text = self._empty if chosen is None else record.features[chosen]
      text = text.astype(np.float32)
    grid = self._grid(*record.extents)
    patches = grid.tokenize(record.sample(rng))
    return Sample(grid, patches, text, caption)

  def name(self, record: int) -> str:
    """Returns the shard of a record, and its number there, for messages."""
    shard, number = self._locate(record)
    return f"{self._folder / self._files[shard]}, record {number}"

  def _count_tokens(self, extents: tuple[int, ...]) -> int:
    try:
      return self._grid(*extents).num_tokens
    except ValueError as error:
      raise ValueError(
        f"{self._folder}: {error}. Encode it with --unit, the pixels of a "
        "token of this network"
      ) from error

  def _rng(self, draw: Draw) -> np.random.Generator:
    key = [Stream.SHARD, self._seed, draw.epoch, draw.record]
    return np.random.default_rng(key)

  def _choose_caption(
    self, record: ShardRecord, rng: np.random.Generator
  ) -> tuple[int | None, str]:
    """Number and text of a caption; None and "" if it is dropped."""
    chosen = int(rng.integers(len(record.captions)))
    if rng.random() < self._dropout:
      return None, ""
    return chosen, record.captions[chosen]

  def _read(self, number: int) -> ShardRecord:
    shard, place = self._locate(number)
    try:
      data = self._readers.read(self._files[shard], place)
      record = shard_record.unpack(data)
      if record.extents != self.kinds[number][:-1]:
        raise ValueError(f"{record.extents} differs from its sidecar")
    # The reader raises RuntimeErrors, also if the file is missing.
    except (RuntimeError, ValueError, OSError, IndexError) as error:
      raise BadRecord(f"{self.name(number)}: {error}") from error
    return record

  def _locate(self, record: int) -> tuple[int, int]:
    """The shard of a record, and its number there."""
    shard, start = locate(self._ends, record)
    return shard, record - start

  def _read_empty(self) -> np.ndarray:
    data = (self._folder / shard_folder.EMPTY).read_bytes()
    return shard_record.unpack_arrays(data)[0]["features"]

  def _read_sidecars(
    self, listed: list[dict[str, Any]]
  ) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Extents, and words of the longest caption, of each record."""
    extents, words = [], []
    empty = self._empty if self._empty is not None else self._tokenize("")
    counts = {"": len(empty)}
    for summary in listed:
      path = shard_folder.sidecar_path(self._folder / summary["file"])
      shard = shard_folder.read_sidecar(path)
      if shard.summary() != summary:
        raise ValueError(f"{path} contradicts {shard_folder.MANIFEST}")
      extents += shard.extents
      words += shard.words
      for captions in shard.captions:
        for text in captions:
          if text not in counts:
            counts[text] = len(self._tokenize(text))
        words.append(max(counts[text] for text in captions))
    least = counts[""] if self._dropout else 1
    return extents, np.maximum(words, least)


class _Readers:
  """Open files of a folder; each process opens its own."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._reset()

  def read(self, file: str, place: int) -> bytes:
    """Reads one record; several threads may read at once."""
    if self._process != os.getpid():  # A fork shares the positions in files.
      self._reset()
    with self._lock:
      reader = self._open.get(file)
      if reader is None:
        path = str(self._folder / file)
        reader = ArrayRecordReader(path, NO_READAHEAD)
        self._open[file] = reader
      self._open.move_to_end(file)
      while len(self._open) > MAX_OPEN:
        self._open.popitem(last=False)  # Closes after its last read.
    return reader.read([place])[0]

  def _reset(self) -> None:
    self._process, self._lock = os.getpid(), threading.Lock()
    self._open: OrderedDict[str, ArrayRecordReader] = OrderedDict()

  def __getstate__(self) -> pathlib.Path:
    return self._folder

  def __setstate__(self, folder: pathlib.Path) -> None:
    self.__init__(folder)


def _check_files(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
  errors = shard_checks.folder_errors(folder, manifest, verify=False)
  if errors:
    hidden = len(errors) - MAX_SHOWN
    more = f" and {hidden} more" if hidden > 0 else ""
    raise ValueError(
      f"{folder}: {'; '.join(errors[:MAX_SHOWN])}{more}. Run the same "
      "lumina_jax.encode command again: it replaces missing and broken shards"
    )


def _round_up(words: np.ndarray) -> np.ndarray:
  """The largest of all counts that round to the same multiple of WORD_STEP.

  So counts have few kinds, and equal counts need no padding.
  """
  group = -(-words // WORD_STEP)
  largest = np.zeros(group.max() + 1, np.int64)
  np.maximum.at(largest, group, words)
  return largest[group]


def _deduplicate(tuples: Iterable[tuple]) -> list[tuple[int, ...]]:
  """Python integers; equal tuples are one object, which saves memory."""
  known: dict[tuple, tuple[int, ...]] = {}
  return [known.setdefault(one, tuple(map(int, one))) for one in tuples]
