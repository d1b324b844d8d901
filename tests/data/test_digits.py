"""Canvases of real digits: the split, the captions, the pixels."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from configs import digits as config_file
from data_pipelines.digit_captions import SIDE, WORDS
from data_pipelines.digits import SHADES, DigitsConfig, split
from data_pipelines.source import Draw
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders import utf8

CFG = dataclasses.replace(
  DigitsConfig(**config_file.get_config().data), records_per_canvas=60
)
RECORDS = len(CFG.canvases) * CFG.records_per_canvas
every_variant = pytest.mark.parametrize("variant", ["flag", "next"])


def canvases(variant="next", seed=0, **changes):
  config = config_file.get_config(variant)
  cfg = dataclasses.replace(CFG, **changes)
  grid = ModelConfig(**config.model).grid
  encoder = utf8.Utf8Config(**config.text_encoder)
  tokenize = functools.partial(utf8.tokenize, encoder)
  return cfg.make_source(1, grid, tokenize, seed)


def caption(sample):
  """The words of a caption, read back from its codes."""
  return " ".join(
    bytes(code - 1 for code in row[utf8.PLACES :] if code).decode()
    for row in sample.text
  )


def named(caption):
  """Rows of digits that a caption names."""
  rows = [
    re.findall(rf"\d|{'|'.join(WORDS)}", line)
    for line in caption.lower().split("/")
  ]
  return [
    [int(w) if w.isdigit() else WORDS.index(w) for w in row] for row in rows
  ]


@functools.cache
def training_labels():
  """Label of each training image, by its bytes."""
  images, labels = split(CFG.held_out)[0]
  return {x.tobytes(): int(y) for x, y in zip(images, labels, strict=True)}


def digits_on(sample):
  """Rows of digits on a canvas; a KeyError if one is not a training digit."""
  pixels = sample.grid.detokenize(sample.patches)[..., 0]
  return [
    [
      training_labels()[np.ascontiguousarray(cell).tobytes()]
      for cell in np.hsplit(band, pixels.shape[1] // SIDE)
    ]
    for band in np.vsplit(pixels, pixels.shape[0] // SIDE)
  ]


def test_train_and_held_out_digits_are_disjoint_and_complete():
  train, held_out = split(0.2)
  first, second = ({x.tobytes() for x in s.images} for s in (train, held_out))
  assert not first & second
  assert len(train.images) == len(train.labels) == 1438
  assert len(held_out.images) == len(held_out.labels) == 359


def test_the_split_holds_every_digit_on_both_sides():
  for part in split(0.2):
    assert (np.bincount(part.labels, minlength=10) > 20).all()


def test_pixels_are_shades_from_minus_1_to_1():
  for images, labels in split(0.2):
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    assert images.shape[1:] == (SIDE, SIDE)
    shades = np.unique(images)
    np.testing.assert_array_equal(shades, np.linspace(-1, 1, SHADES + 1))


@every_variant
def test_a_canvas_shows_the_digits_its_caption_names(variant):
  source = canvases(variant=variant, caption_dropout=0.0)
  for record in range(0, RECORDS, 17):
    sample = source.sample(Draw(0, record, record))
    assert digits_on(sample) == named(caption(sample))


def test_a_record_is_a_canvas_of_its_size():
  source = canvases()
  for record in range(0, RECORDS, 17):
    rows, columns = CFG.canvases[record // CFG.records_per_canvas]
    grid = source.sample(Draw(0, record, record)).grid
    assert grid.shape == (SIDE * rows, SIDE * columns)


def test_a_draw_always_gives_the_same_canvas():
  records = (0, RECORDS // 3, RECORDS - 1)
  draws = [Draw(epoch, r, r) for epoch in (0, 3) for r in records]
  forth, back = canvases(), canvases()
  first = {draw: forth.sample(draw) for draw in draws}
  for draw in reversed(draws):
    again = back.sample(draw)
    np.testing.assert_array_equal(first[draw].patches, again.patches)
    assert caption(first[draw]) == caption(again)


@pytest.mark.parametrize("other", [dict(epoch=1), dict(record=1), dict(seed=1)])
def test_other_epochs_records_and_seeds_give_other_canvases(other):
  def patches(epoch=0, record=0, seed=0):
    return canvases(seed=seed).sample(Draw(epoch, record, record)).patches

  assert not np.array_equal(patches(), patches(**other))


def test_a_canvas_and_its_words_begin_at_the_same_origin():
  source = canvases(origins=(2, 1))
  (patch, _) = config_file.get_config().model.patch
  begun = set()
  for record in range(0, RECORDS, 7):
    sample = source.sample(Draw(0, record, record))
    origin = sample.grid.ids.min(axis=0) * patch // SIDE
    assert origin.tolist() == sample.text[:, :2].min(axis=0).tolist()
    begun.add(tuple(origin.tolist()))
  assert begun == {(line, column) for line in range(3) for column in range(2)}


def test_running_positions_have_no_origin():
  source = canvases("flag", origins=(2, 1))
  for record in range(0, RECORDS, 31):
    sample = source.sample(Draw(0, record, record))
    assert sample.grid.ids[0] == 0
    assert sample.text[0, :2].tolist() == [0, 0]


def test_captions_are_dropped_at_their_share():
  source = canvases()
  dropped = [source.sample(Draw(0, r, r)).caption == "" for r in range(RECORDS)]
  assert np.mean(dropped) == pytest.approx(CFG.caption_dropout, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_captions_are_dropped_never_or_always(share):
  source = canvases(caption_dropout=share)
  texts = [caption(source.sample(Draw(0, r, r))) for r in range(0, RECORDS, 31)]
  assert all((text == "") == bool(share) for text in texts)


def test_dropping_a_caption_leaves_the_canvas_unchanged():
  with_caption, without = (canvases(caption_dropout=p) for p in (0.0, 1.0))
  np.testing.assert_array_equal(
    with_caption.sample(Draw(2, 9, 9)).patches,
    without.sample(Draw(2, 9, 9)).patches,
  )


@every_variant
def test_no_sample_exceeds_its_announced_size(variant):
  source = canvases(variant)
  sizes = source.sizes
  assert len(sizes) == RECORDS
  reached = np.zeros(RECORDS, bool)
  for record in range(0, RECORDS, 5):
    sample = source.sample(Draw(0, record, record))
    tokens, words, samples = sizes[record]
    assert len(sample.patches) == sample.grid.num_tokens == tokens
    assert len(sample.text) <= words
    assert samples == 1
    reached[record] = len(sample.text) == words
  assert reached.any()
