"""Samples from shards: the same by any reader; damage is found and named."""

import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.configs import ROOT
from support.shards import (
  ENCODED,
  FROZEN,
  FakeImages,
  captions,
  features,
  grid,
  make_job,
  moments,
  tokenize,
  write,
)

from data_pipelines import shard_checks, shard_folder, shard_record
from data_pipelines.batches import Batches
from data_pipelines.shard_job import ShardJob
from data_pipelines.shard_record import unpack
from data_pipelines.shard_source import ShardSource
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import BadRecord, Draw, Stream
from data_pipelines.source_config import LoaderOptions
from lumina_jax.tokens import Grid

TEXT = dataclasses.asdict(FROZEN)


def open_text(folder, **options):
  return ShardSource(folder, grid, tokenize, **options)


def open_encoded(folder, dropout=0.3):
  return ShardSource(folder, grid, dropout=dropout)


def test_records_keep_their_order_pixels_and_captions(plain):
  source, kept = open_text(plain), [r for r in range(20) if r != 8]
  assert len(source.sizes) == len(source.kinds) == len(kept)
  for number, r in enumerate(kept):
    expected, _ = FakeImages().pixels(Draw(0, r, r))
    sample = source.sample(Draw(5, number, number))
    assert (sample.caption,) == captions(20)[r]
    np.testing.assert_array_equal(
      sample.patches, grid(*expected.shape[:2]).tokenize(expected)
    )
    np.testing.assert_array_equal(sample.text, tokenize(sample.caption))


def test_sizes_are_known_and_sufficient_within_a_kind(plain):
  source = open_text(plain, dropout=0.5)
  largest = {}
  for r, (size, kind) in enumerate(
    zip(source.sizes, source.kinds, strict=True)
  ):
    sample = source.sample(Draw(0, r, r))
    assert size == (sample.grid.num_tokens, kind[2], 1)
    assert kind[:2] == sample.grid.shape
    assert len(sample.text) <= size[1]
    largest.setdefault(kind, size)
    assert size == largest[kind]
  # No more than the longest caption: a budget of so many words is enough.
  assert max(size[1] for size in source.sizes) == 4 + 3


def test_folders_in_a_store_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for read in (open_text, shard_folder.read_manifest):
    with pytest.raises(
      ValueError, match=r"gs://b/x: .* bucket that is mounted"
    ):
      read("gs://b/x")


def test_an_incomplete_folder_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="is not a folder of shards"):
    open_text(tmp_path)
  missing = write(tmp_path, make_job(), 0, 2)
  assert missing == ["shard_00001-of-00003.array_record"]
  with pytest.raises(FileNotFoundError, match="not complete yet"):
    open_text(tmp_path)


@pytest.mark.parametrize(
  ("suffix", "change", "message"),
  [
    ("array_record", None, r"shard_00001-of-00003\.array_record is missing"),
    ("array_record", lambda d: d[:-1], "bytes instead of"),
    ("json", None, "the sidecar of shard_00001"),
    ("json", lambda d: d[:-9], "cannot be read"),
    ("json", lambda d: b'{"file": 1}', "is not a sidecar"),
    ("json", lambda d: d.replace(b"[[8", b"[[4, 4], [8"), "contradicts"),
  ],
)
def test_damage_is_found_when_the_folder_is_opened(
  copy, suffix, change, message
):
  path = copy / f"shard_00001-of-00003.{suffix}"
  if change is None:
    path.unlink()
  else:
    path.write_bytes(change(path.read_bytes()))
  with pytest.raises(ValueError, match=message):
    open_text(copy)


def flip_byte(path, record):
  """Changes one byte of the pixels of a record."""
  data, pixels = path.read_bytes(), unpack(record).pixels.tobytes()
  place = data.find(pixels[:24])
  assert place > 0, "the test expects pixels that do not compress"
  changed = bytearray(data)
  changed[place] ^= 1
  path.write_bytes(changed)


def test_a_changed_byte_makes_one_bad_record(copy):
  path = copy / "shard_00001-of-00003.array_record"
  intact = open_text(copy)
  record = intact._readers.read(path.name, 2)
  expected = [intact.sample(Draw(0, r, r)) for r in range(19)]
  flip_byte(path, record)
  with pytest.raises(ValueError, match=r"shard_00001.* has changed"):
    shard_checks.verify(copy)
  source = open_text(copy)
  with pytest.raises(BadRecord, match=r"00001-of-00003\S*, record 2: .*hash"):
    source.sample(Draw(0, 9, 9))
  for r in set(range(19)) - {9}:
    sample = source.sample(Draw(0, r, r))
    np.testing.assert_array_equal(sample.patches, expected[r].patches)
  path.unlink()
  reopened = pickle.loads(pickle.dumps(source))
  with pytest.raises(BadRecord, match="record 3"):
    reopened.sample(Draw(0, 10, 10))


def assert_same(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a.patches, b.patches)
    np.testing.assert_array_equal(a.text, b.text)
    assert (a.grid, a.caption) == (b.grid, b.caption)


def read_samples(source, draws):
  return [source.sample(draw) for draw in draws]


def test_a_shard_may_be_empty(tmp_path):
  write(tmp_path, make_job(bad=range(7, 14)), max_bad=0.5)
  source, kept = open_text(tmp_path), [*range(7), *range(14, 20)]
  summaries = shard_folder.read_manifest(tmp_path)["shards"]
  assert [summary["records"] for summary in summaries] == [7, 0, 6]
  for number, r in enumerate(kept):
    caption = source.sample(Draw(0, number, number)).caption
    assert caption == captions(20)[r][0]


def test_batches_read_by_threads(copy):
  intact = open_text(copy)
  path = copy / "shard_00002-of-00003.array_record"
  flip_byte(path, intact._readers.read(path.name, 0))  # The 13th of all.
  source, budget = open_text(copy, dropout=0.2), (32, 16, 4)
  threads = Batches(source, budget, 2, 0, options=LoaderOptions(threads=4))
  count = 3 * round(threads.per_epoch)
  single = Batches(source, budget, 2, 0)
  loaded = list(threads.read(0, count))
  for i, one in enumerate(loaded):
    expected = single.load(i)
    assert one.bad_records == expected.bad_records
    for a, b in zip(one.batch[0], expected.batch[0], strict=True):
      np.testing.assert_array_equal(a, b)
  bad = [error for one in loaded for error in one.bad_records]
  assert 2 <= len(bad) <= 4
  assert all("00002-of-00003.array_record, record 0" in error for error in bad)


def test_threads_and_pickled_sources_read_the_same(encoded):
  source = open_encoded(encoded)
  draws = [Draw(e, r, r) for e in range(6) for r in range(20)]
  expected = read_samples(source, draws)
  with ThreadPoolExecutor(8) as pool:
    assert_same(pool.map(source.sample, draws[::-1]), expected[::-1])
  reopened = pickle.loads(pickle.dumps(source))
  assert_same(read_samples(reopened, draws), expected)


def read_in_fork(source, draws, expected, results):
  assert_same(read_samples(source, draws), expected)
  results.put("the same")


@pytest.mark.e2e
def test_a_fork_reads_while_its_parent_does(plain):
  source = open_text(plain)
  draws = [Draw(e, r, r) for e in range(20) for r in range(19)]
  expected = read_samples(source, draws)
  fork = multiprocessing.get_context("fork")
  results = fork.SimpleQueue()
  args = (source, draws, expected, results)
  child = fork.Process(target=read_in_fork, args=args)
  child.start()
  assert_same(read_samples(source, draws), expected)
  child.join()
  assert child.exitcode == 0
  assert results.get() == "the same"


def test_every_draw_samples_latents_from_their_distribution(encoded):
  source = open_encoded(encoded)
  pixels, _ = FakeImages().pixels(Draw(0, 4, 4))
  mean, std = (x[0] for x in moments(pixels[None]))
  latents = []
  for epoch in range(200):
    sample = source.sample(Draw(epoch, 4, 4))
    latents.append(sample.grid.detokenize(sample.patches))
  assert sample.patches.dtype == np.float32
  z = (np.stack(latents) - mean) / std
  assert abs(z.mean()) < 0.1
  assert abs(z.std() - 1) < 0.05
  again = source.sample(Draw(3, 4, 4))
  np.testing.assert_array_equal(
    again.grid.detokenize(again.patches), latents[3]
  )


def test_latents_have_a_random_stream_of_their_own(encoded):
  rng = np.random.default_rng([Stream.SHARD, 0, 3, 4])
  rng.integers(2), rng.random()
  pixels, _ = FakeImages().pixels(Draw(0, 4, 4))
  mean, std = (x[0].astype(np.float16) for x in moments(pixels[None]))
  expected = shard_record.sample_latents(mean, std, rng)
  sample = open_encoded(encoded).sample(Draw(3, 4, 4))
  np.testing.assert_array_equal(
    sample.grid.detokenize(sample.patches), expected
  )


def test_captions_are_chosen_and_dropped(encoded):
  source = open_encoded(encoded)
  samples = [source.sample(Draw(epoch, 4, 4)) for epoch in range(300)]
  texts = [sample.caption for sample in samples]
  shares = [texts.count(text) / 300 for text in ("", *captions(20, 2)[4])]
  np.testing.assert_allclose(shares, (0.3, 0.35, 0.35), atol=0.09)
  for sample in samples:
    (expected,) = features([sample.caption])
    assert sample.text.dtype == np.float32
    np.testing.assert_array_equal(sample.text, expected)


def test_dropped_captions_fit(tmp_path):
  settings = ENCODED | {"channels": 3}
  one_word = lambda texts: [features([t])[0][:1] for t in texts]  # noqa: E731
  write(tmp_path, make_job(3, features=one_word), settings=settings)
  (tmp_path / shard_folder.EMPTY).unlink()
  writer = ShardWriter(tmp_path, settings, 1)
  writer.write_empty(features([""])[0])
  writer.finish()
  for dropout, words in ((0.0, 1), (0.1, 2)):
    source = open_encoded(tmp_path, dropout)
    assert {size[1] for size in source.sizes} == {words}


def test_classes_are_captions_too(tmp_path):
  write(tmp_path, ShardJob([FakeImages()], [(str(r),) for r in range(4)], 10))
  codes = lambda caption: np.asarray([[int(caption or 9)]])  # noqa: E731
  source = ShardSource(tmp_path, grid, codes)
  codes = [int(source.sample(Draw(0, r, r)).text[0, 0]) for r in range(4)]
  assert codes == [0, 1, 2, 3]


@pytest.mark.parametrize(
  ("folder", "channels", "text", "message"),
  [
    ("encoded", 4, TEXT, "samples of 2 channels, the network takes 4"),
    ("encoded", 2, None, "captions as features of width 8"),
    ("encoded", 2, TEXT | {"width": 9}, "width = 8 there, 9 in"),
    (
      "encoded",
      2,
      TEXT | {"hidden": "last", "max_tokens": 9, "cleaning": "clean"},
      "hidden = 'penultimate' there, 'last' .*; max_tokens = 16 .*; cleaning",
    ),
    ("plain", 3, TEXT, "features of width 8; encode again with --text_encoder"),
  ],
)
def test_networks_that_do_not_fit_are_refused(
  request, folder, channels, text, message
):
  folder = request.getfixturevalue(folder)
  open_encoded(request.getfixturevalue("encoded")).check_network(2, TEXT)
  open_text(request.getfixturevalue("plain")).check_network(3)
  with pytest.raises(ValueError, match=message):
    open_text(folder).check_network(channels, text)


def coarse(height, width):
  return Grid((height, width), (3, 3), False, False)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ((grid,), "pass `tokenize`, or encode it with --text_encoder"),
    ((coarse, tokenize), r"plain: size .* Encode it with --unit"),
    ((grid, tokenize, 1.5), "dropout = 1.5"),
  ],
)
def test_arguments_that_do_not_fit_are_refused(plain, args, message):
  with pytest.raises(ValueError, match=message):
    ShardSource(plain, *args)


@pytest.mark.e2e
def test_a_worker_imports_neither_jax_nor_encoders():
  names = "('jax', 'flax', 'transformers', 'tensorflow', 'lumina_jax.encoders')"
  code = (
    "import sys, data_pipelines.shard_source, data_pipelines.image_source\n"
    f"print([name for name in {names} if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "[]"
