"""Jobs: records keep their order, whatever batches they are encoded in."""

import dataclasses
import json

import numpy as np
import pytest
from support.shards import (
  ENCODED,
  FakeImages,
  features,
  make_job,
  moments,
  write,
)

from data_pipelines import shard_job, threads
from data_pipelines.shard_job import ShardJob
from data_pipelines.shard_record import pack
from data_pipelines.source import Draw
from data_pipelines.threads import map_ahead


class RareSizes(FakeImages):
  """Images of two sizes, and one in a hundred of a third."""

  def __init__(self):
    super().__init__()
    self.loaded = 0

  def pixels(self, draw):
    self.loaded += 1
    number = 2 if draw.record % 100 == 30 else draw.record % 2
    return super().pixels(Draw(0, number, 0))


@pytest.mark.parametrize("waiting", [4, 32])
def test_few_records_wait_for_one_of_a_rare_size(monkeypatch, waiting):
  monkeypatch.setattr(shard_job, "MAX_WAITING", waiting)
  sizes = []
  job = make_job(
    500,
    records_per_shard=400,
    moments=lambda x: sizes.append(len(x)) or moments(x),
    features=features,
  )
  source = RareSizes()
  job = dataclasses.replace(job, sources=[source])
  records, most = [], 0
  for record in job.records(0):
    most = max(most, source.loaded - len(records))
    records.append(record)
  assert [r.name for r in records] == [f"{number}.png" for number in range(400)]
  loading = (threads.AHEAD + 1) * job.threads + 1
  assert most <= waiting * job.batch_size + loading
  # Rare ones may be encoded alone, the others nearly always in fours.
  assert sum(sizes) == 400
  assert sum(size < 4 for size in sizes) <= 6
  assert [pack(r) for r in job.records(0)] == [pack(r) for r in records]


def test_latents_beyond_float16_are_bad(tmp_path):
  huge = lambda pixels: (moments(pixels)[0] * 1e6, moments(pixels)[1])  # noqa: E731
  with pytest.raises(ValueError, match="none of the records"):
    write(tmp_path, make_job(5, moments=huge), settings=ENCODED, max_bad=1.0)
  shard = json.loads((tmp_path / "shard_00000-of-00001.json").read_text())
  assert shard["bad"][0][1] == "its latents are not finite in float16"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(records_per_shard=0), "records_per_shard = 0"),
    (dict(batch_size=0), "batch_size = 0"),
    (dict(threads=0), "threads = 0"),
    (dict(captions=()), "no records to encode"),
    (dict(sources=()), "no records to encode"),
  ],
)
def test_arguments_out_of_range_are_refused(change, message):
  arguments = dict(sources=[FakeImages()], captions=[("a",)])
  with pytest.raises(ValueError, match=message):
    ShardJob(**arguments | dict(records_per_shard=1) | change)


def test_epochs_follow_one_another():
  records = [r for i in range(3) for r in make_job(5, epochs=3).records(i)]
  assert [r.epoch for r in records] == [0] * 5 + [1] * 5 + [2] * 5
  for number, record in enumerate(records):
    epoch, r = divmod(number, 5)
    expected, _ = FakeImages().pixels(Draw(epoch, r, r))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(record.sample(rng), expected)


def test_threads_keep_the_order_and_load_few_ahead():
  started = []
  results = map_ahead(lambda x: started.append(x) or x * x, range(500), 3)
  assert next(results) == 0
  assert len(started) < 100
  assert list(results) == [x * x for x in range(1, 500)]
