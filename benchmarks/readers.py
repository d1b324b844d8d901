"""Who makes batches of photographs: ours, and PyTorch's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.batches import Batches
from data_pipelines.buckets import Buckets
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.records import Record
from data_pipelines.source_config import LoaderOptions
from lumina_jax.encoders import utf8
from lumina_jax.media import crop
from lumina_jax.tokens import Grid

PATCH = 16  # Pixels: of the autoencoder 8, of the network 2.
EACH, ROWS = 4, 2  # Pictures of a row, rows of a batch.
BATCH = ROWS * EACH
TEXT = utf8.Utf8Config(width=64, max_words=64)
tokenize = functools.partial(utf8.tokenize, TEXT)


class Contestant(NamedTuple):
  """Who makes batches.

  Attributes:
    open: (round, batches) -> examples of each batch, as it is made.
    makers: threads or processes side by side.
  """

  open: Callable[[int, int], Iterator[int]]
  makers: int = 1


Contestants = dict[str, Contestant]


def plural(number: int, what: str) -> str:
  return f"{number} {what}{'' if number == 1 else 's'}"


def source(records: tuple[Record, ...], buckets: Buckets) -> ImageSource:
  cfg = ImageSourceConfig(
    channels=3, bucket_choices=4, caption_dropout=0.0, flip=False, max_words=64
  )
  return ImageSource(
    records,
    buckets,
    lambda height, width: Grid((height, width), (PATCH,) * 2, False, False),
    tokenize,
    cfg,
    seed=0,
  )


def batches_of(
  images: ImageSource, side: int, reading: LoaderOptions
) -> Batches:
  tokens = (side // PATCH) ** 2
  budget = EACH * tokens, EACH * TEXT.max_words, EACH
  return Batches(images, budget, ROWS, seed=0, options=reading)


def ours(
  records: tuple[Record, ...], buckets: Buckets, side: int, most: int
) -> Contestants:
  """Crops alone, and batches by threads and by workers."""
  images = source(records, buckets)

  def crops(number, batches, draft):
    for k in range(number * batches, (number + 1) * batches):
      for r in range(k * BATCH, (k + 1) * BATCH):
        r %= len(records)
        rng = np.random.default_rng([number, r])
        crop.load(records[r].path, images.buckets[r], rng, 3, False, draft)
      yield BATCH

  def read(number, count, reading):
    first = number * count
    batches = batches_of(images, side, reading)
    with contextlib.closing(batches.read(first, first + count)) as stream:
      yield from (loaded.records for loaded in stream)

  found = {
    "crop, draft": Contestant(functools.partial(crops, draft=True)),
    "crop, full": Contestant(functools.partial(crops, draft=False)),
  }
  for n in range(1, most + 1):
    how = {
      plural(n, "thread"): LoaderOptions(threads=n),
      plural(n, "worker"): LoaderOptions(workers=n),
    }
    for name, reading in how.items():
      found[name] = Contestant(functools.partial(read, reading=reading), n)
  return found


def theirs(
  records: tuple[Record, ...], buckets: Buckets, side: int, most: int
) -> Contestants:
  """The same with PyTorch, each with and without draft."""
  from benchmarks import torch_loader

  sizes = buckets.sizes(side)

  def crops(number, batches, draft):
    rng = np.random.default_rng(number)
    for k in range(number * batches, (number + 1) * batches):
      for r in range(k * BATCH, (k + 1) * BATCH):
        record = records[r % len(records)]
        fitting = torch_loader.best(sizes, record.height, record.width)
        with Image.open(record.path) as image:
          size = fitting[rng.integers(len(fitting))]
          torch_loader.cropped(image, size, rng.random(2), draft)
      yield BATCH

  def read(number, count, draft, workers):
    dataset = torch_loader.Pictures(records, sizes, tokenize, draft)
    order = np.random.default_rng(number).permutation(count * BATCH)
    order = (order % len(records)).tolist()
    for batch in torch_loader.batches(dataset, order, BATCH, workers):
      yield len(batch)

  found = {}
  for name, draft in {"draft": True, "full": False}.items():
    of = functools.partial(crops, draft=draft)
    found[f"torch crop, {name}"] = Contestant(of)
    for n in range(most + 1):
      of = functools.partial(read, draft=draft, workers=n)
      label = f"torch, {plural(n, 'worker')}, {name}"
      found[label] = Contestant(of, max(n, 1))
  return found
