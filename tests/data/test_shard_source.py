"""Folders of shards: the same bytes however they come about, or none."""

import contextlib
import dataclasses
import json
import multiprocessing
import pickle
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support import pictures as fake_pictures
from support.configs import ROOT
from support.pictures import (
  SETTINGS,
  Fake,
  captions,
  contents,
  grid,
  job,
  tokenize,
  write,
)

from data_pipelines import shard_job, shard_record, shard_writer, shards
from data_pipelines.batches import Batches, Reading
from data_pipelines.shard_job import ahead
from data_pipelines.shard_record import Record, pack, unpack
from data_pipelines.shard_source import SAMPLE, ShardSource
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import BadRecord, Draw
from lumina_jax import encode
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.tokens import Grid

FROZEN = FrozenTextConfig(width=8, max_tokens=16)
ENCODED = SETTINGS | {
  "channels": 2,
  "text_encoder": {
    "frozen": {
      "width": 8,
      "hidden": "penultimate",
      "max_tokens": 16,
      "add_eos": False,
      "cleaning": "",
      "system_prompt": "",
    }
  },
}


def opened(folder, **options):
  return ShardSource(folder, grid, tokenize, **options)


def moments(pixels):
  """Halves both sides; a deviation that differs from place to place."""
  mean = pixels[:, ::2, ::2, :2] * 3
  return mean, np.abs(mean) / 7 + 0.01


def features(texts):
  return [
    np.full((len(text.split()) or 2, 8), len(text), ml_dtypes.bfloat16)
    for text in texts
  ]


def encoded(folder, count=20, each=2, **changes):
  what = job(count, each=each, moments=moments, features=features, **changes)
  write(folder, what, settings=ENCODED)
  return ShardSource(folder, grid, dropout=0.3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """Pixels and text in three shards."""
  folder = tmp_path_factory.mktemp("shards") / "plain"
  assert write(folder, job(bad=(8,))) == []
  return folder


@pytest.fixture
def copy(plain, tmp_path):
  """The same, to be broken."""
  folder = tmp_path / "copy"
  folder.mkdir()
  for name, data in contents(plain).items():
    (folder / name).write_bytes(data)
  return folder


def record():
  rng = np.random.default_rng(0)
  mean, std = rng.standard_normal((2, 3, 4, 2)).astype(np.float16)
  words = [rng.standard_normal((n, 5)).astype("bfloat16") for n in (2, 7)]
  return Record("ä.png", 3, ("a cat", "猫"), None, mean, std, tuple(words))


def test_a_record_comes_back_bit_for_bit():
  before = record()
  after = unpack(pack(before))
  assert after[:3] == before[:3]
  assert after.extents == (3, 4)
  for a, b in zip(after[4:6] + after[6], before[4:6] + before[6], strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert pack(after) == pack(before)


def test_a_record_that_is_cut_short_anywhere_is_refused():
  data = pack(record())
  for end in range(0, len(data), 7):
    with pytest.raises(ValueError, match="of ours"):
      unpack(data[:end])


def test_every_shade_comes_back():
  shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  pixels = shades.astype(np.float32) / np.float32(127.5) - 1
  np.testing.assert_array_equal(shard_record.to_bytes(pixels), shades)


def test_records_keep_their_order_pixels_and_captions(plain):
  source, kept = opened(plain), [r for r in range(20) if r != 8]
  assert len(source.sizes) == len(source.kinds) == len(kept)
  for number, r in enumerate(kept):
    expected, _ = Fake().pixels(Draw(0, r, r))
    pixels, caption = source.pixels(Draw(5, number, number))
    np.testing.assert_array_equal(pixels, expected)
    assert (caption,) == captions(20)[r]
    sample = source.sample(Draw(0, number, number))
    np.testing.assert_array_equal(
      sample.patches, grid(*expected.shape[:2]).tokenize(expected)
    )
    np.testing.assert_array_equal(sample.text, tokenize(caption))


def test_sizes_are_known_and_enough_within_a_kind(plain):
  source = opened(plain, dropout=0.5)
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


def test_what_is_bad_is_named_and_not_there(plain):
  manifest = shards.read_manifest(plain)
  assert manifest["bad"] == [{"name": "8.png", "reason": "cut short"}]
  assert manifest["records"] == 19
  assert [shard["records"] for shard in manifest["shards"]] == [7, 6, 6]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_any_number_of_processes_writes_the_same(plain, tmp_path, processes):
  folder, what = tmp_path / "shared", job(bad=(8,))
  for process in range(processes):
    missing = write(folder, what, process, processes)
    complete = process >= min(processes, what.shards) - 1
    assert (folder / shards.MANIFEST).exists() == (not missing) == complete
  assert contents(folder) == contents(plain)


def test_what_is_missing_or_broken_is_made_again(plain, copy):
  names = [f"shard_{i:05d}-of-00003" for i in range(3)]
  (copy / shards.MANIFEST).unlink()
  (copy / f"{names[0]}.json").unlink()
  (copy / f"{names[1]}.array_record").write_bytes(b"half")
  data = bytearray((copy / f"{names[2]}.array_record").read_bytes())
  data[70] ^= 1
  (copy / f"{names[2]}.array_record").write_bytes(data)
  (copy / f".{names[0]}.array_record.of_process_0").write_bytes(b"left over")
  assert write(copy, job(bad=(8,))) == []
  assert contents(copy) == contents(plain)


class Died(BaseException):
  """What nothing expects."""


def dies(patch, folder, step):
  """Writes until a step towards the disk; whether it came to an end.

  From then on nothing is put away, as if the process had been killed.
  """
  steps, dead = iter(range(step)), []

  def stepping(act):
    def step_or_die(*args, **options):
      if next(steps, None) is None:
        dead.append(True)
        raise Died
      return act(*args, **options)

    return step_or_die

  unlink = Path.unlink
  with patch.context() as within:
    within.setattr(shard_writer, "_sync", stepping(shard_writer._sync))
    within.setattr(Path, "replace", stepping(Path.replace))
    within.setattr(Path, "unlink", lambda *a, **o: dead or unlink(*a, **o))
    with contextlib.suppress(Died):
      write(folder, job(bad=(8,)))
  return not dead


def test_it_may_die_at_any_step(plain, tmp_path, monkeypatch):
  expected = contents(plain)
  for step in range(100):
    folder = tmp_path / f"{step}"
    ended, left = dies(monkeypatch, folder, step), contents(folder)
    for name in left.keys() & expected.keys():
      assert left[name] == expected[name]  # Under its own name it is whole.
      if name.startswith("shard_") and name.endswith(".json"):
        assert Path(name).with_suffix(".array_record").name in left
    assert (shards.MANIFEST in left) <= (expected.keys() <= left.keys())
    write(folder, job(bad=(8,)))
    assert contents(folder) == expected
    if ended:
      break
  assert step == 3 + 3 * 6 + 3  # Settings, shards with sidecars, the manifest.


def test_what_is_complete_is_not_made_again(plain, copy):
  def never(draw):
    raise AssertionError("read again")

  what = job(bad=(8,))
  for source in what.sources:
    source.pixels = never
  assert write(copy, what) == []
  assert contents(copy) == contents(plain)


def test_too_many_bad_ones_stop_it_and_no_shard_appears(tmp_path):
  many = range(30, 60)
  with pytest.raises(OSError, match=r"6 of 36 .*max_bad=0\.05.*35\.png \(cut"):
    write(tmp_path, job(200, bad=many))
  assert len(list(tmp_path.glob("shard_*.array_record"))) == 5
  assert not list(tmp_path.glob(".*"))
  # A hundred pictures and more are judged by their share.
  assert write(tmp_path, job(200, bad=many), max_bad=0.5) == []
  with pytest.raises(OSError, match="30 of 200 records"):
    write(tmp_path, job(200, bad=many))
  with pytest.raises(ValueError, match="none of the records"):
    write(tmp_path / "none", job(5, bad=range(5)), max_bad=1.0)


def test_other_settings_are_refused_by_name(copy):
  other = SETTINGS | {"channels": 4, "source": {"path": "/", "sha256": "0"}}
  with pytest.raises(ValueError, match=r"\(channels: 3 there, 4 now\)"):
    write(copy, job(), settings=other)
  moved = SETTINGS | {"source": {"path": "/elsewhere", "sha256": "0"}}
  assert write(copy, job(bad=(8,)), settings=moved) == []


def test_two_of_one_number_do_not_write_at_once(tmp_path):
  first, second = (ShardWriter(tmp_path, SETTINGS, 3, 0) for _ in range(2))
  with first.alone():
    with pytest.raises(OSError, match="process 0 is at work"):
      second.alone().__enter__()
    with ShardWriter(tmp_path, SETTINGS, 3, 1).alone():
      pass
  with second.alone():
    pass


def test_a_store_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for read in (opened, shards.read_manifest):
    with pytest.raises(
      ValueError, match=r"gs://b/x: .* bucket that is mounted"
    ):
      read("gs://b/x")


def test_a_folder_that_is_not_complete_is_not_opened(tmp_path):
  with pytest.raises(FileNotFoundError, match="is no folder of shards"):
    opened(tmp_path)
  missing = write(tmp_path, job(), 0, 2)
  assert missing == ["shard_00001-of-00003.array_record"]
  with pytest.raises(FileNotFoundError, match="not complete yet"):
    opened(tmp_path)


@pytest.mark.parametrize(
  ("suffix", "change", "message"),
  [
    ("array_record", None, r"shard_00001-of-00003\.array_record is missing"),
    ("array_record", lambda d: d[:-1], "bytes in place of"),
    ("json", None, "the sidecar of shard_00001"),
    ("json", lambda d: d[:-9], "cannot be read"),
    ("json", lambda d: b'{"file": 1}', "is no sidecar"),
    ("json", lambda d: d.replace(b"[[8", b"[[4, 4], [8"), "otherwise than"),
  ],
)
def test_what_is_broken_is_found_when_it_is_opened(
  copy, suffix, change, message
):
  path = copy / f"shard_00001-of-00003.{suffix}"
  if change is None:
    path.unlink()
  else:
    path.write_bytes(change(path.read_bytes()))
  with pytest.raises(ValueError, match=message):
    opened(copy)


def flip(path, of):
  """Changes one byte of what a record of pixels holds."""
  data, pixels = path.read_bytes(), unpack(of).pixels.tobytes()
  place = data.find(pixels[:24])
  assert place > 0, "the test expects pixels that do not compress"
  changed = bytearray(data)
  changed[place] ^= 1
  path.write_bytes(changed)


def test_a_byte_that_changed_makes_one_bad_record(copy):
  path = copy / "shard_00001-of-00003.array_record"
  healthy = opened(copy)
  broken = healthy._readers.read(path.name, 2)
  expected = [healthy.sample(Draw(0, r, r)) for r in range(19)]
  flip(path, broken)
  with pytest.raises(ValueError, match=r"shard_00001.* has changed"):
    opened(copy, verify=True)
  with pytest.raises(ValueError, match=r"shard_00001.* has changed"):
    encode.verify(copy)
  source = opened(copy)
  with pytest.raises(BadRecord, match=r"00001-of-00003\S*, record 2: .*hash"):
    source.sample(Draw(0, 9, 9))
  for r in set(range(19)) - {9}:
    found = source.sample(Draw(0, r, r))
    np.testing.assert_array_equal(found.patches, expected[r].patches)
  path.unlink()
  with pytest.raises(BadRecord, match="record 3"):
    opened_late = pickle.loads(pickle.dumps(source))
    opened_late.sample(Draw(0, 10, 10))


def test_an_intact_folder_verifies(plain, capsys):
  encode.verify(plain)
  opened(plain, verify=True)
  assert "3 shards of 19 records" in capsys.readouterr().out


def assert_same(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a.patches, b.patches)
    np.testing.assert_array_equal(a.text, b.text)
    assert (a.grid, a.caption) == (b.grid, b.caption)


def _samples(source, draws):
  return [source.sample(draw) for draw in draws]


def test_a_shard_may_hold_nothing(tmp_path):
  write(tmp_path, job(bad=range(7, 14)), max_bad=0.5)
  source, kept = opened(tmp_path), [*range(7), *range(14, 20)]
  shown = [
    shards.read_manifest(tmp_path)["shards"][i]["records"] for i in (0, 1)
  ]
  assert shown == [7, 0]
  for number, r in enumerate(kept):
    assert source.pixels(Draw(0, number, number))[1] == captions(20)[r][0]


def test_batches_are_made_of_them(copy):
  healthy = opened(copy)
  path = copy / "shard_00002-of-00003.array_record"
  flip(path, healthy._readers.read(path.name, 0))  # The 13th of all.
  source, budget = opened(copy, dropout=0.2), (32, 16, 4)
  threads = Batches(source, budget, 2, 0, reading=Reading(threads=4))
  count = 3 * round(threads.per_epoch)
  plain_ = Batches(source, budget, 2, 0)
  loaded = list(threads.read(0, count))
  for i, one in enumerate(loaded):
    expected = plain_.load(i)
    assert one.faults == expected.faults
    for a, b in zip(one.batch[0], expected.batch[0], strict=True):
      np.testing.assert_array_equal(a, b)
  faults = [fault for one in loaded for fault in one.faults]
  assert 2 <= len(faults) <= 4
  assert {"00002-of-00003.array_record, record 0" in f for f in faults} == {
    True
  }


def test_threads_and_processes_read_the_same(tmp_path):
  source = encoded(tmp_path, 60)
  draws = [Draw(e, r, r) for e in range(3) for r in range(60)]
  expected = _samples(source, draws)
  with ThreadPoolExecutor(8) as pool:
    assert_same(pool.map(source.sample, draws[::-1]), expected[::-1])
  assert_same(_samples(pickle.loads(pickle.dumps(source)), draws), expected)


def _in_a_fork(source, draws, expected, results):
  assert_same(_samples(source, draws), expected)
  results.put("the same")


def test_a_fork_reads_while_its_parent_does(plain):
  source = opened(plain)
  draws = [Draw(e, r, r) for e in range(20) for r in range(19)]
  expected = _samples(source, draws)
  fork = multiprocessing.get_context("fork")
  results = fork.SimpleQueue()
  args = (source, draws, expected, results)
  child = fork.Process(target=_in_a_fork, args=args)
  child.start()
  assert_same(_samples(source, draws), expected)
  child.join()
  assert child.exitcode == 0
  assert results.get() == "the same"


def test_latents_are_drawn_anew_from_their_distribution(tmp_path):
  source = encoded(tmp_path)
  pixels, _ = Fake().pixels(Draw(0, 4, 4))
  mean, std = (x[0] for x in moments(pixels[None]))
  drawn = []
  for epoch in range(200):
    sample = source.sample(Draw(epoch, 4, 4))
    drawn.append(sample.grid.detokenize(sample.patches))
  assert sample.patches.dtype == np.float32
  z = (np.stack(drawn) - mean) / std
  assert abs(z.mean()) < 0.1
  assert abs(z.std() - 1) < 0.05
  again = source.sample(Draw(3, 4, 4))
  np.testing.assert_array_equal(again.grid.detokenize(again.patches), drawn[3])
  with pytest.raises(ValueError, match="no pixels any more"):
    source.pixels(Draw(0, 0, 0))


def test_noise_is_of_its_own_stream(tmp_path):
  source = encoded(tmp_path)
  rng = np.random.default_rng([SAMPLE, 0, 3, 4])
  rng.integers(2), rng.random()
  pixels, _ = Fake().pixels(Draw(0, 4, 4))
  mean, std = (x[0].astype(np.float16) for x in moments(pixels[None]))
  expected = shard_record.draw(mean, std, rng)
  sample = source.sample(Draw(3, 4, 4))
  np.testing.assert_array_equal(
    sample.grid.detokenize(sample.patches), expected
  )


def test_captions_are_chosen_and_dropped(tmp_path):
  source = encoded(tmp_path)
  drawn = [source.sample(Draw(epoch, 4, 4)) for epoch in range(300)]
  texts = [sample.caption for sample in drawn]
  shares = [texts.count(text) / 300 for text in ("", *captions(20, 2)[4])]
  np.testing.assert_allclose(shares, (0.3, 0.35, 0.35), atol=0.09)
  for sample in drawn:
    (expected,) = features([sample.caption])
    assert sample.text.dtype == np.float32
    np.testing.assert_array_equal(sample.text, expected)


def test_dropped_captions_have_room(tmp_path):
  what = job(3, features=lambda ts: [features([t])[0][:1] for t in ts])
  write(tmp_path, what, settings=ENCODED | {"channels": 3})
  (tmp_path / shards.EMPTY).unlink()
  writer = ShardWriter(tmp_path, ENCODED | {"channels": 3}, 1)
  writer.write_empty(features([""])[0])
  writer.finish()
  for dropout, words in ((0.0, 1), (0.1, 2)):
    source = ShardSource(tmp_path, grid, dropout=dropout)
    assert {size[1] for size in source.sizes} == {words}


def test_epochs_follow_one_another(tmp_path):
  write(tmp_path, job(5, epochs=3))
  source = opened(tmp_path)
  for number in range(15):
    epoch, r = divmod(number, 5)
    expected, _ = Fake().pixels(Draw(epoch, r, r))
    found, _ = source.pixels(Draw(0, number, number))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ((4, 8, FROZEN), "media of 2 channels, the network draws 4"),
    ((2, 8, None), "captions are features of width 8"),
    ((2, 9, FrozenTextConfig(9, max_tokens=16)), "width = 8 there, 9 in"),
    (
      (2, 8, FrozenTextConfig(8, hidden="last", cleaning="clean")),
      "hidden = 'penultimate' there, 'last' .*; max_tokens = 16 .*; cleaning",
    ),
  ],
)
def test_a_network_of_another_kind_is_refused(tmp_path, args, message):
  source = encoded(tmp_path, 3)
  source.check(2, 8, FROZEN)
  with pytest.raises(ValueError, match=message):
    source.check(*args)


def test_text_is_refused_where_features_are_due(plain):
  opened(plain).check(3, 0, None)
  with pytest.raises(ValueError, match="encode again with --text_encoder"):
    opened(plain).check(3, 8, FROZEN)
  with pytest.raises(ValueError, match="name what tokenizes them"):
    ShardSource(plain, grid)


def test_media_that_no_patch_divides_are_refused(plain):
  coarse = lambda h, w: Grid((h, w), (3, 3), False, False)  # noqa: E731
  with pytest.raises(ValueError, match=r"plain: size .* Encode with --unit"):
    ShardSource(plain, coarse, tokenize)


def test_classes_are_captions_too(tmp_path):
  what = fake_pictures.Job([Fake()], [(str(r),) for r in range(4)], 10)
  write(tmp_path, what)
  codes = lambda caption: np.asarray([[int(caption or 9)]])  # noqa: E731
  source = ShardSource(tmp_path, grid, codes)
  found = [int(source.sample(Draw(0, r, r)).text[0, 0]) for r in range(4)]
  assert found == [0, 1, 2, 3]


def test_latents_beyond_float16_are_bad(tmp_path):
  huge = lambda pixels: (moments(pixels)[0] * 1e6, moments(pixels)[1])  # noqa: E731
  what = job(5, moments=huge)
  write(tmp_path, job(5), settings=ENCODED)
  with pytest.raises(ValueError, match="none of the records"):
    write(tmp_path / "new", what, max_bad=1.0)
  shard = json.loads((tmp_path / "new/shard_00000-of-00001.json").read_text())
  assert shard["bad"][0][1] == "its latents are no finite numbers in float16"


class Rare(fake_pictures.Fake):
  """Every other picture of one size, and a hundredth of a third."""

  def __init__(self):
    super().__init__()
    self.loaded = 0

  def pixels(self, draw):
    self.loaded += 1
    number = 2 if draw.record % 100 == 30 else draw.record % 2
    return super().pixels(Draw(0, number, 0))


@pytest.mark.parametrize("waiting", [4, 32])
def test_few_records_wait_for_one_of_a_rare_size(monkeypatch, waiting):
  monkeypatch.setattr(shard_job, "WAITING", waiting)
  sizes = []
  what = job(
    500,
    records_per_shard=400,
    moments=lambda x: sizes.append(len(x)) or moments(x),
    features=features,
  )
  source = Rare()
  what = dataclasses.replace(what, sources=[source])
  names, most = [], 0
  for one in what.records(0):
    most = max(most, source.loaded - len(names))
    names.append(one.name)
  assert names == [f"{number}.png" for number in range(400)]
  ahead_of_it = (shard_job.AHEAD + 1) * what.threads + 1
  assert most <= waiting * what.batch_size + ahead_of_it
  # The rare ones are encoded alone or not; the others nearly always in fours.
  assert sum(sizes) == 400
  assert sum(size < 4 for size in sizes) <= 6
  shard = [pack(one) for one in what.records(0)]
  assert [pack(one) for one in what.records(0)] == shard


def test_work_ahead_keeps_its_order_and_bounds_itself():
  begun = []
  results = ahead(lambda x: begun.append(x) or x * x, range(500), threads=3)
  assert next(results) == 0
  assert len(begun) < 100
  assert list(results) == [x * x for x in range(1, 500)]


FULL = """
import sys
from support.pictures import job, write
write(sys.argv[1], job(20))
"""


def python(code, *words, **options):
  return subprocess.run(
    [sys.executable, "-c", code, *map(str, words)],
    cwd=ROOT / "tests",
    env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def small_files():
  """A system that refuses what goes beyond a size, as a full disk does."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_said_and_leaves_what_is_complete(tmp_path):
  write(tmp_path, job(20))
  expected = contents(tmp_path)
  (tmp_path / "shard_00001-of-00003.json").unlink()
  (tmp_path / shards.MANIFEST).unlink()
  done = python(FULL, tmp_path, preexec_fn=small_files)
  assert done.returncode
  assert "a shard could not be written" in done.stderr
  assert "File too large" in done.stderr
  left = contents(tmp_path)
  assert not [name for name in left if name.startswith(".")]
  assert "shard_00001-of-00003.json" not in left
  write(tmp_path, job(20))
  assert contents(tmp_path) == expected


def test_a_worker_imports_neither_jax_nor_encoders():
  names = "('jax', 'flax', 'transformers', 'tensorflow', 'lumina_jax.encoders')"
  code = (
    "import sys, data_pipelines.shard_source\n"
    f"print([name for name in {names} if name in sys.modules])"
  )
  done = python(code)
  assert done.stdout.strip() == "[]", done.stderr
