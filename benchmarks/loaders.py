"""Loaders of photographs to compare: ours, and PyTorch's."""

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

PATCH = 16  # Pixels per token along a side: 8 per latent, 2 latents.
ROWS, PER_ROW = 2, 4  # Rows of a batch, images of a row.
BATCH = ROWS * PER_ROW
TEXT = utf8.Utf8Config(width=64, max_words=64)
tokenize = functools.partial(utf8.tokenize, TEXT)


class Loader(NamedTuple):
  """A way to load batches.

  Attributes:
    open: (round, number of batches) -> number of examples of each batch, when
      it is loaded.
    workers: number of threads or processes that load at the same time.
  """

  open: Callable[[int, int], Iterator[int]]
  workers: int = 1


Loaders = dict[str, Loader]


def plural(number: int, noun: str) -> str:
  return f"{number} {noun}{'' if number == 1 else 's'}"


def make_source(records: tuple[Record, ...], buckets: Buckets) -> ImageSource:
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


def make_batches(
  images: ImageSource, side: int, options: LoaderOptions
) -> Batches:
  tokens = (side // PATCH) ** 2
  budget = PER_ROW * tokens, PER_ROW * TEXT.max_words, PER_ROW
  return Batches(images, budget, ROWS, seed=0, options=options)


def our_loaders(
  records: tuple[Record, ...], buckets: Buckets, side: int, max_workers: int
) -> Loaders:
  """Crops without a loader, and batches by threads and by workers."""
  images = make_source(records, buckets)

  def crops(number, batches, draft):
    for k in range(number * batches, (number + 1) * batches):
      for r in range(k * BATCH, (k + 1) * BATCH):
        r %= len(records)
        rng = np.random.default_rng([number, r])
        crop.load(records[r].path, images.buckets[r], rng, 3, False, draft)
      yield BATCH

  def read(number, count, options):
    first = number * count
    batches = make_batches(images, side, options)
    with contextlib.closing(batches.read(first, first + count)) as stream:
      yield from (loaded.records for loaded in stream)

  found = {
    "crop, draft": Loader(functools.partial(crops, draft=True)),
    "crop, full": Loader(functools.partial(crops, draft=False)),
  }
  for n in range(1, max_workers + 1):
    for name, options in (
      (plural(n, "thread"), LoaderOptions(threads=n)),
      (plural(n, "worker"), LoaderOptions(workers=n)),
    ):
      found[name] = Loader(functools.partial(read, options=options), n)
  return found


def torch_loaders(
  records: tuple[Record, ...], buckets: Buckets, side: int, max_workers: int
) -> Loaders:
  """PyTorch's counterparts, each with and without draft."""
  from benchmarks import torch_loader

  sizes = buckets.sizes(side)

  def crops(number, batches, draft):
    rng = np.random.default_rng(number)
    for k in range(number * batches, (number + 1) * batches):
      for r in range(k * BATCH, (k + 1) * BATCH):
        record = records[r % len(records)]
        fitting = torch_loader.best_fit(sizes, record.height, record.width)
        with Image.open(record.path) as image:
          size = fitting[rng.integers(len(fitting))]
          torch_loader.crop(image, size, rng.random(2), draft)
      yield BATCH

  def read(number, count, draft, workers):
    dataset = torch_loader.Images(records, sizes, tokenize, draft)
    order = np.random.default_rng(number).permutation(count * BATCH)
    order = (order % len(records)).tolist()
    for batch in torch_loader.batches(dataset, order, BATCH, workers):
      yield len(batch)

  found = {}
  for name, draft in {"draft": True, "full": False}.items():
    crop_all = functools.partial(crops, draft=draft)
    found[f"torch crop, {name}"] = Loader(crop_all)
    for n in range(max_workers + 1):
      load = functools.partial(read, draft=draft, workers=n)
      label = f"torch, {plural(n, 'worker')}, {name}"
      found[label] = Loader(load, max(n, 1))
  return found
