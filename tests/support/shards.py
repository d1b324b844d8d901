"""Pictures made of numbers, and jobs that write them into shards."""

import numpy as np

from data_pipelines.shard_job import Job
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import BadRecord
from lumina_jax import encode
from lumina_jax.tokens import Grid

SETTINGS = {
  "source": {"path": "/here", "sha256": "0"},
  "channels": 3,
  "text_encoder": None,
}
SIZES = ((4, 8), (8, 4), (8, 8))


class Fake:
  """Pictures of three sizes, some of them broken."""

  def __init__(self, bad=()):
    self.bad = bad

  def pixels(self, draw):
    if draw.record in self.bad:
      raise BadRecord(f"/photos/{draw.record}.png: cut short")
    rng = np.random.default_rng([draw.epoch, draw.record])
    size = (*SIZES[draw.record % 3], 3)
    shades = rng.integers(256, size=size).astype(np.float32)
    return shades / np.float32(127.5) - 1, "unused"

  def name(self, record):
    return f"/photos/{record}.png"


def captions(count, each=1):
  return [
    tuple(f"{'very ' * (r % 5)}good {r} {k}" for k in range(each))
    for r in range(count)
  ]


def job(count=20, bad=(), epochs=1, each=1, **changes):
  """A job of so many pictures, seven to a shard."""
  values = dict(records_per_shard=7, batch_size=4, threads=2, root="/photos/")
  sources = [Fake(bad)] * epochs
  return Job(sources, captions(count, each), **values | changes)


def write(folder, what, process=0, processes=1, settings=None, max_bad=0.05):
  """Runs a job; returns what other processes have still to do."""
  writer = ShardWriter(folder, settings or SETTINGS, what.shards, process)
  return encode.encode(what, writer, max_bad, (), process, processes)


def grid(height, width):
  return Grid((height, width), (2, 2), False, False)


def tokenize(caption):
  """A code a word; the empty caption is one word as well."""
  words = caption.split() or [""]
  return np.asarray([[len(word)] for word in words], np.int32)


def contents(folder):
  """Bytes of all files by name."""
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
