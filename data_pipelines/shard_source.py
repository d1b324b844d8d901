"""A source of samples from a folder of shards.

Planning reads sidecars only, a sample its own record only. Neither JAX nor an
encoder is imported: data workers stay light.
"""

from __future__ import annotations

import os
import pathlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines import shard_record, shards
from data_pipelines.shard_record import Record
from data_pipelines.source import BadRecord, Draw, Sample
from lumina_jax.tokens import Grid

SAMPLE = 13  # stream of random numbers, see digits.py
WORDS = 8  # Captions share a kind if they share this multiple of tokens.
OPEN = 256  # Files that a process keeps open; a system mostly allows 1024.
NEAR = "readahead_buffer_size:0"  # What lies behind a record is not wanted.


class ShardSource:
  """Record r of a folder -> a sample, the same whenever a draw is asked for.

  Threads and processes may share one.

  Attributes:
    sizes: (tokens, words, 1) that each record takes, at the most.
    kinds: of each record: (h, w) of its medium, and its words.
    made_with: settings of the command that wrote the folder.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    grid: Callable[..., Grid],
    tokenize: Callable[[str], np.ndarray] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    verify: bool = False,
  ):
    """Opens a folder.

    Args:
      folder: that `lumina_jax.encode` wrote.
      grid: extents (h, w) -> layout, e.g. `ModelConfig.grid`.
      tokenize: caption -> codes, e.g. `Network.tokenize`, for a folder whose
        captions are text; of no use where they are features.
      dropout: share of draws whose caption is "".
      seed: of what is drawn at random.
      verify: whether to compare all checksums, which reads all of it.

    Raises:
      FileNotFoundError: if it is no folder of shards, or not complete.
      ValueError: if it lies in a store, files of it are missing or have
        changed, its media are no multiples of a patch, or captions are text
        and nothing tokenizes them.
    """
    if not 0 <= dropout <= 1:
      raise ValueError(f"dropout {dropout}: a share, from 0 to 1")
    self._folder = shards.local(folder).absolute()
    manifest = shards.read_manifest(self._folder)
    _check_files(self._folder, manifest, verify)
    self.made_with: dict[str, Any] = manifest["made_with"]
    self._files = [shard["file"] for shard in manifest["shards"]]
    self._ends = np.cumsum([shard["records"] for shard in manifest["shards"]])
    self._grid, self._tokenize = grid, tokenize
    self._dropout, self._seed = dropout, seed
    self._empty = self._features_of_empty() if manifest["empty"] else None
    if self._empty is None and tokenize is None:
      raise ValueError(
        f"{folder} holds captions as text: name what tokenizes them, or encode "
        "it with --text_encoder"
      )
    extents, words = self._read_sidecars(manifest["shards"])
    tokens = {pair: self._tokens(*pair) for pair in set(extents)}
    words = _round_up(words)
    self.sizes: Sequence[tuple[int, int, int]] = _shared(
      (tokens[pair], count, 1)
      for pair, count in zip(extents, words, strict=True)
    )
    self.kinds: Sequence[tuple[int, int, int]] = _shared(
      (*pair, count) for pair, count in zip(extents, words, strict=True)
    )
    self._readers = _Readers(self._folder)

  def check(
    self, channels: int, text_width: int, frozen: Any | None = None
  ) -> None:
    """Compares what was encoded with what a network takes.

    Args:
      channels: C of the latents that it draws.
      text_width: E of its text features, 0 = it takes none.
      frozen: its `FrozenTextConfig`; None = it encodes captions itself.

    Raises:
      ValueError: if they differ, naming both.
    """
    shards.check_network(
      self._folder, self.made_with, channels, text_width, frozen
    )

  def sample(self, draw: Draw) -> Sample:
    """What a draw gives: latents, a caption and its dropout, all drawn anew.

    Raises:
      BadRecord: if the record is broken.
    """
    record, rng = self._read(draw.record), self._rng(draw)
    chosen, caption = self._choose(record, rng)
    if self._empty is None:
      text = self._tokenize(caption)
    else:
      text = self._empty if chosen is None else record.features[chosen]
      text = text.astype(np.float32)
    grid = self._grid(*record.extents)
    patches = grid.tokenize(record.medium(rng))
    return Sample(grid, patches, text, caption)

  def pixels(self, draw: Draw) -> tuple[np.ndarray, str]:
    """Pixels of a draw, `f32[H, W, C]` in [-1, 1], and its caption.

    Raises:
      BadRecord: if the record is broken.
      ValueError: if the folder holds latents.
    """
    record, rng = self._read(draw.record), self._rng(draw)
    if record.pixels is None:
      raise ValueError(f"{self._folder} holds latents, and no pixels any more")
    _, caption = self._choose(record, rng)
    return record.medium(rng), caption

  def name(self, record: int) -> str:
    """Says which record that is: its shard, and its number there."""
    shard, number = self._find(record)
    return f"{self._folder / self._files[shard]}, record {number}"

  def _tokens(self, height: int, width: int) -> int:
    try:
      return self._grid(height, width).num_tokens
    except ValueError as error:
      raise ValueError(
        f"{self._folder}: {error}. Encode with --unit, the pixels of a token "
        "of this network"
      ) from error

  def _rng(self, draw: Draw) -> np.random.Generator:
    key = [SAMPLE, self._seed, draw.epoch, draw.record]
    return np.random.default_rng(key)

  def _choose(
    self, record: Record, rng: np.random.Generator
  ) -> tuple[int | None, str]:
    """Number and text of a caption of several; None and "" = dropped."""
    chosen = int(rng.integers(len(record.captions)))
    if rng.random() < self._dropout:
      return None, ""
    return chosen, record.captions[chosen]

  def _read(self, number: int) -> Record:
    shard, place = self._find(number)
    try:
      data = self._readers.read(self._files[shard], place)
      record = shard_record.unpack(data)
      if record.extents != self.kinds[number][:2]:
        raise ValueError(f"{record.extents}, its sidecar says another size")
    # The reader raises RuntimeErrors, also for a file that is gone.
    except (RuntimeError, ValueError, OSError, IndexError) as error:
      raise BadRecord(f"{self.name(number)}: {error}") from error
    return record

  def _find(self, record: int) -> tuple[int, int]:
    shard = int(np.searchsorted(self._ends, record, side="right"))
    start = int(self._ends[shard - 1]) if shard else 0
    return shard, record - start

  def _features_of_empty(self) -> np.ndarray:
    data = (self._folder / shards.EMPTY).read_bytes()
    return shard_record.unpack_arrays(data)[0]["features"]

  def _read_sidecars(
    self, listed: list[dict[str, Any]]
  ) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Of each record the extents, and the words of its longest caption."""
    extents, words = [], []
    empty = self._empty if self._empty is not None else self._tokenize("")
    counts = {"": len(empty)}
    least = counts[""] if self._dropout else 1
    for facts in listed:
      path = shards.sidecar_path(self._folder / facts["file"])
      shard = shards.read_sidecar(path)
      if shard.listed() != facts:
        raise ValueError(f"{path} says otherwise than {shards.MANIFEST}")
      extents += shard.extents
      words += shard.words
      for captions in shard.captions:
        for text in captions:
          if text not in counts:
            counts[text] = len(self._tokenize(text))
        words.append(max(counts[text] for text in captions))
    return extents, np.maximum(words, least)


class _Readers:
  """Open files of a folder, those of each process its own."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._reset()

  def read(self, file: str, place: int) -> bytes:
    """One record. A reader takes several threads at once."""
    if self._process != os.getpid():  # A fork shares the places in files.
      self._reset()
    with self._lock:
      reader = self._open.get(file)
      if reader is None:
        path = str(self._folder / file)
        reader = ArrayRecordReader(path, NEAR)
        self._open[file] = reader
      self._open.move_to_end(file)
      while len(self._open) > OPEN:
        self._open.popitem(last=False)  # Closes when its last read is done.
    return reader.read([place])[0]

  def _reset(self) -> None:
    self._process, self._lock = os.getpid(), threading.Lock()
    self._open: OrderedDict[str, ArrayRecordReader] = OrderedDict()

  def __getstate__(self) -> pathlib.Path:
    return self._folder

  def __setstate__(self, folder: pathlib.Path) -> None:
    self.__init__(folder)


def _check_files(
  folder: pathlib.Path, manifest: dict[str, Any], verify: bool
) -> None:
  found = shards.faults(folder, manifest, verify)
  if found:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise ValueError(
      f"{folder}: {'; '.join(found[:5])}{more}. Run lumina_jax.encode as "
      "before: it makes anew what is missing or broken"
    )


def _round_up(words: np.ndarray) -> np.ndarray:
  """The most words of those that round to the same multiple of WORDS.

  So no more than is needed where all are alike, and few kinds where not.
  """
  group = -(-words // WORDS)
  most = np.zeros(group.max() + 1, np.int64)
  np.maximum.at(most, group, words)
  return most[group]


def _shared(triples: Any) -> list[tuple[int, int, int]]:
  """A list that holds equal triples once, of numbers of Python."""
  known: dict[tuple, tuple[int, int, int]] = {}
  return [
    known.setdefault(triple, tuple(map(int, triple))) for triple in triples
  ]
