"""Records of shards are read back bit for bit, or refused."""

import ml_dtypes
import numpy as np
import pytest

from data_pipelines import shard_record
from data_pipelines.shard_record import ShardRecord, pack, unpack


def make_record(*extents):
  rng = np.random.default_rng(0)
  mean, std = rng.standard_normal((2, *extents, 2)).astype(np.float16)
  words = [
    rng.standard_normal((n, 5)).astype(ml_dtypes.bfloat16) for n in (2, 7)
  ]
  captions = "a cat", "猫"
  return ShardRecord("ä.png", 3, captions, None, mean, std, tuple(words))


@pytest.mark.parametrize("extents", [(3, 4), (24,), (2, 3, 4)])
def test_a_record_is_read_back_bit_for_bit(extents):
  before = make_record(*extents)
  after = unpack(pack(before))
  assert after[:3] == before[:3]
  assert after.extents == extents
  for a, b in zip(after[4:6] + after[6], before[4:6] + before[6], strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert pack(after) == pack(before)


def test_a_record_that_is_cut_anywhere_is_refused():
  data = pack(make_record(3, 4))
  for end in range(0, len(data), 7):
    with pytest.raises(ValueError, match="not a safetensors file of a shard"):
      unpack(data[:end])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(mean=None), "no latents and no pixels"),
    (dict(mean=None, std=None), "no latents and no pixels"),
    (dict(captions=()), "no caption"),
    (dict(captions=("a", "b", "c")), "2 features of 3 captions"),
  ],
)
def test_records_without_samples_or_captions_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    unpack(pack(make_record(3, 4)._replace(**change)))


def test_all_bytes_are_read_back():
  values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  pixels = values.astype(np.float32) / np.float32(127.5) - 1
  np.testing.assert_array_equal(shard_record.to_bytes(pixels), values)
