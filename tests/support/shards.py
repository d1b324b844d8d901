"""Images made of random numbers, and jobs that write them into shards."""

import dataclasses

import ml_dtypes
import numpy as np

from data_pipelines.shard_job import ShardJob
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import BadRecord
from data_pipelines.write_shards import write_shards
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.tokens import Grid

SETTINGS = {
  "source": {"path": "/here", "sha256": "0"},
  "channels": 3,
  "text_encoder": None,
}
FROZEN = TextFeaturesConfig(width=8, max_tokens=16)
ENCODED = SETTINGS | {
  "channels": 2,
  "text_encoder": {"frozen": dataclasses.asdict(FROZEN)},
}
SIZES = ((4, 8), (8, 4), (8, 8))


class FakeImages:
  """Images of three sizes; some of them are bad."""

  def __init__(self, bad=()):
    self.bad = bad

  def pixels(self, draw):
    if draw.record in self.bad:
      raise BadRecord(f"/photos/{draw.record}.png: cut short")
    rng = np.random.default_rng([draw.epoch, draw.record])
    size = (*SIZES[draw.record % 3], 3)
    values = rng.integers(256, size=size).astype(np.float32)
    return values / np.float32(127.5) - 1, "unused"

  def name(self, record):
    return f"/photos/{record}.png"


def captions(count, each=1):
  return [
    tuple(f"{'very ' * (r % 5)}good {r} {k}" for k in range(each))
    for r in range(count)
  ]


def make_job(count=20, bad=(), epochs=1, each=1, **changes):
  """A job of `count` images, seven to a shard."""
  values = dict(records_per_shard=7, batch_size=4, threads=2, root="/photos/")
  sources = [FakeImages(bad)] * epochs
  return ShardJob(sources, captions(count, each), **values | changes)


def write(folder, job, process=0, processes=1, settings=None, max_bad=0.05):
  """Runs a job; returns the files that other processes have yet to write."""
  writer = ShardWriter(folder, settings or SETTINGS, job.shards, process)
  return write_shards(job, writer, max_bad, (), process, processes)


def moments(pixels):
  """Halves both sides; standard deviations differ from place to place."""
  mean = pixels[:, ::2, ::2, :2] * 3
  return mean, np.abs(mean) / 7 + 0.01


def features(texts):
  return [
    np.full((len(text.split()) or 2, 8), len(text), ml_dtypes.bfloat16)
    for text in texts
  ]


def grid(height, width):
  return Grid((height, width), (2, 2), False, False)


def tokenize(caption):
  """One code per word; the empty caption has one as well."""
  words = caption.split() or [""]
  return np.asarray([[len(word)] for word in words], np.int32)


def contents(folder):
  """Bytes of all files by name."""
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
