"""Images as a source: a draw decides everything, and fits its slot."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.batches import Batches
from data_pipelines.buckets import Buckets
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.records import Record
from data_pipelines.source import BadRecord, Draw
from lumina_jax.tokens import Grid

CFG = ImageSourceConfig(
  channels=3, bucket_choices=4, caption_dropout=0.0, flip=False, max_words=8
)
BUCKETS = Buckets([32, 64], 8)
SHAPES = [(40, 60), (61, 40), (200, 150), (70, 90), (64, 64)]
EACH = 8  # records of each size


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  records = []
  for number, (height, width) in enumerate(SHAPES):
    path = str(folder / f"{number}.png")
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    for copy in range(EACH):
      captions = tuple(f"{n} " * (1 + copy % 3) for n in "abc")
      records.append(Record(path, captions, height, width))
  return records


def grid(height, width):
  return Grid((height, width), (8, 8), raster=False, separators=True)


def tokenize(caption):
  """One code per word; the empty caption has one as well."""
  words = caption.split() or [""]
  return np.asarray([[len(word)] for word in words], np.int32)


def images(records, seed=0, to_latents=None, grid=grid, words=None, **changes):
  cfg = dataclasses.replace(CFG, **changes)
  return ImageSource(
    records, BUCKETS, grid, tokenize, cfg, seed, to_latents, words
  )


def slots(source, record):
  """Slots that a record fits."""
  return [
    p for p, kind in enumerate(source.kinds) if kind == source.kinds[record]
  ]


def test_a_record_fits_any_slot_of_its_kind(records):
  source = images(records)
  layouts = set()
  for record in range(0, len(records), 3):
    for slot in slots(source, record):
      sample = source.sample(Draw(1, record, slot))
      tokens, words, one = source.sizes[slot]
      assert len(sample.patches) == sample.grid.num_tokens == tokens
      assert len(sample.text) <= words
      assert one == 1
      layouts.add((record, sample.grid.shape))
      assert sample.grid.shape in source.kinds[record][0]
  # An image is cropped to several sizes.
  assert len(layouts) > 2 * len(range(0, len(records), 3))


def test_a_record_does_not_fit_slots_of_other_kinds(records):
  source = images(records)
  other = slots(source, 0)[-1] + EACH
  assert source.kinds[other] != source.kinds[0]
  for read in (source.sample, source.pixels):
    with pytest.raises(
      ValueError, match=f"slot of {other}: their kinds differ"
    ):
      read(Draw(0, 0, other))


def test_samples_are_crops_with_their_captions(records):
  source = images(records)
  for record in range(0, len(records), 7):
    draw = Draw(0, record, record)
    sample = source.sample(draw)
    pixels, caption = source.pixels(draw)
    np.testing.assert_array_equal(
      sample.grid.detokenize(sample.patches), pixels
    )
    np.testing.assert_array_equal(sample.text, tokenize(caption))
    assert sample.caption == caption
    assert caption in records[record].captions


def test_the_same_draw_is_the_same_and_another_epoch_is_not(records):
  options = dict(flip=True, caption_dropout=0.5)
  first, second = images(records, **options), images(records, **options)
  assert first.sizes == second.sizes
  draws = [Draw(e, r, r) for e in (0, 5) for r in range(0, len(records), 9)]
  forth = {draw: first.sample(draw) for draw in draws}
  for draw in reversed(draws):
    again = second.sample(draw)
    np.testing.assert_array_equal(forth[draw].patches, again.patches)
    assert forth[draw].caption == again.caption
  record = 2 * EACH  # Larger than any bucket.
  crops = {
    first.sample(Draw(epoch, record, record)).patches.tobytes()
    for epoch in range(10)
  }
  assert len(crops) > 5


def test_the_seed_decides_buckets_and_crops(records):
  first, second = images(records), images(records, seed=1)
  assert first.kinds == second.kinds
  assert first.sizes != second.sizes


def test_buckets_are_chosen_equally_often(records):
  many = [records[0]] * 2000
  source = images(many)
  choices = source.kinds[0][0]
  assert choices == BUCKETS.candidates(40, 60, 4)
  counts = collections.Counter(source.buckets)
  assert set(counts) == set(choices)
  assert min(counts.values()) > 420
  assert set(images(many, bucket_choices=1).buckets) == {choices[0]}


def test_more_records_leave_the_others_in_their_buckets(records):
  assert images(records).sizes[:11] == images(records[:11]).sizes


def test_captions_are_chosen_equally_often_and_dropped_at_their_share(records):
  tiny = [Record(records[0].path, ("a", "b", "c"), 16, 16)]
  source = images(tiny, caption_dropout=0.25)
  counts = collections.Counter(
    source.pixels(Draw(epoch, 0, 0))[1] for epoch in range(300)
  )
  assert set(counts) == {"", "a", "b", "c"}
  assert all(count == pytest.approx(75, abs=25) for count in counts.values())


def test_dropping_a_caption_leaves_the_crop(records):
  never, always = (images(records, caption_dropout=p) for p in (0.0, 1.0))
  draw = Draw(2, 17, 17)
  kept, dropped = never.sample(draw), always.sample(draw)
  assert (kept.caption != "", dropped.caption) == (True, "")
  np.testing.assert_array_equal(kept.patches, dropped.patches)
  np.testing.assert_array_equal(dropped.text, tokenize(""))


def test_words_are_rounded_up_to_quarters_and_cut_off(records):
  path = records[0].path
  records = [
    Record(path, ("a", "a " * count), 40, 60) for count in (1, 2, 3, 7, 9, 50)
  ]
  source = images(records)
  counts = [words for _, words, _ in source.sizes]
  assert counts == [2, 2, 4, 8, 8, 8]
  assert [count for _, count in source.kinds] == counts
  lengths = {len(source.sample(Draw(e, 5, 5)).text) for e in range(20)}
  assert lengths == {1, 8}


def test_the_empty_caption_fits_if_captions_are_dropped(records):
  tiny = [Record(records[0].path, ("a",), 40, 60)]
  long = lambda caption: 5 if caption == "" else 1  # noqa: E731
  assert images(tiny, words=long).sizes[0][1] == 2
  assert images(tiny, words=long, caption_dropout=0.1).sizes[0][1] == 6


def test_captions_that_were_counted_too_short_are_named(records):
  tiny = [Record(records[0].path, ("a b c d e",), 40, 60)]
  source = images(tiny, words=lambda caption: 1)
  with pytest.raises(ValueError, match=r"0\.png: 5 words, but .* at most 2"):
    source.sample(Draw(0, 0, 0))


def test_latents_take_the_place_of_pixels(records):
  def halve(pixels, rng):
    means = pixels.reshape(pixels.shape[0] // 2, 2, -1, 2, 3).mean((1, 3))
    return means + rng.standard_normal(means.shape)

  def latent_grid(height, width):
    return Grid(
      (height // 2, width // 2), (4, 4), raster=False, separators=False
    )

  source = images(records, to_latents=halve, grid=latent_grid)
  draw = Draw(0, 3, 3)
  pixels, _ = source.pixels(draw)
  one, two, other = (source.sample(d) for d in (draw, draw, Draw(1, 3, 3)))
  assert one.grid.shape == (pixels.shape[0] // 2, pixels.shape[1] // 2)
  np.testing.assert_array_equal(one.patches, two.patches)
  assert not np.array_equal(one.patches, other.patches)
  noise = one.grid.detokenize(one.patches) - halve(
    pixels, np.random.default_rng(0)
  )
  assert 1 < noise.std() < 2


def test_latents_of_another_size_are_refused(records):
  source = images(records, to_latents=lambda x, rng: x[:8])
  with pytest.raises(ValueError, match="expected"):
    source.sample(Draw(0, 0, 0))


def test_gray_images(records):
  source = images(records, channels=1)
  sample = source.sample(Draw(0, 0, 0))
  assert sample.patches.shape[-1] == 8 * 8


def test_unreadable_images_are_bad_records_and_other_errors_pass(
  records, tmp_path
):
  gone = [Record(str(tmp_path / "gone.png"), ("a",), 40, 60)]
  source = images(gone)
  assert source.name(0) == gone[0].path
  for read in (source.sample, source.pixels):
    with pytest.raises(BadRecord, match=r"gone\.png: No such file"):
      read(Draw(0, 0, 0))

  def fails(pixels, rng):
    raise RuntimeError("no memory left")

  with pytest.raises(RuntimeError, match="no memory left"):
    images(records, to_latents=fails).sample(Draw(0, 0, 0))


def test_workers_get_the_same_source(records):
  source = images(records)
  copy = pickle.loads(pickle.dumps(source))
  draw = Draw(3, 4, 4)
  np.testing.assert_array_equal(
    source.sample(draw).patches, copy.sample(draw).patches
  )


def test_batches_of_images(records):
  """All records of an epoch fit the rows that the plan promised."""
  batches = Batches(images(records), (80, 16, 4), 4, seed=0)
  segments = 0
  for i in range(int(np.ceil(2 * batches.per_epoch))):
    loaded = batches.load(i)
    assert not loaded.bad_records
    segments += loaded.records
  assert segments >= 2 * len(records)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(records=[]), "no images"),
    (dict(channels=4), "channels = 4"),
    (dict(caption_dropout=1.5), "caption_dropout = 1.5"),
    (dict(bucket_choices=0), "bucket_choices = 0"),
    (dict(max_words=0), "max_words = 0"),
  ],
)
def test_arguments_out_of_range_are_refused(records, change, message):
  with pytest.raises(ValueError, match=message):
    images(**{"records": records} | change)
