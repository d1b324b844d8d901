"""Packing: samples side by side, stacking, row lengths, first fit."""

import itertools
import math

import numpy as np
import pytest

from lumina_jax import packing
from lumina_jax.packing import first_fit
from lumina_jax.tokens import Condition, Grid


def latents(shape):
  """Distinct values, so that every change of order fails."""
  full = (*shape, 3)
  return np.arange(1, 1 + math.prod(full), dtype=np.float32).reshape(full)


def packed(length):
  shapes = ((2, 4), (4, 4), (2, 2))
  grids = [Grid(s, (2, 2), raster=False, separators=True) for s in shapes]
  patches = [grid.tokenize(latents(grid.shape)) for grid in grids]
  return grids, patches, packing.pack(grids, patches, length, 12, axes=2)


def test_pack_lays_samples_side_by_side():
  grids, patches, row = packed(length=14)
  assert row.segments.tolist() == [1] * 3 + [2] * 6 + [3] * 2 + [0] * 3
  for number, (grid, values) in enumerate(
    zip(grids, patches, strict=True), start=1
  ):
    place = row.segments == number
    np.testing.assert_array_equal(row.patches[place], values)
    np.testing.assert_array_equal(row.ids[place], grid.ids)
    np.testing.assert_array_equal(row.kinds[place], grid.kinds)


def test_padding_of_a_row_is_zero():
  _, _, row = packed(length=14)
  assert all(not field[row.segments == 0].any() for field in row)


def test_a_row_may_be_full_or_empty():
  assert (packed(length=11)[2].segments > 0).all()
  empty = packing.pack([], [], 5, 12, 2)
  assert [f.shape for f in empty] == [(5, 12), (5, 2), (5,), (5,)]
  assert not empty.segments.any()


def test_samples_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r"11 tokens .* row of 10"):
    packed(length=10)
  grids, patches, _ = packed(length=14)
  for expected in ((11, 2), (12, 1)):
    with pytest.raises(ValueError, match=r"sample 1 has 12 .* and 2 .* has "):
      packing.pack(grids, patches, 14, *expected)


def test_texts_are_packed_by_segment_number():
  texts = [np.full((2, 3), 5), None, np.full((1, 3), 7)]
  found = packing.pack_text(texts, 5, 3)
  assert found.text[:, 0].tolist() == [5, 5, 7, 0, 0]
  assert found.text_segments.tolist() == [1, 1, 3, 0, 0]
  assert packing.pack_text([], 2, 3, np.float32).text.dtype == np.float32


def test_row_lengths_have_eight_steps_per_octave():
  lengths = sorted({packing.ladder(n) for n in range(1, 1025)})
  assert lengths[:4] == [16, 32, 48, 64] and lengths[-1] == 1024
  for n in range(1, 1025):
    assert n <= packing.ladder(n) < n + max(16, n / 8)
    assert packing.ladder(packing.ladder(n)) == packing.ladder(n)
  assert len([n for n in lengths if 512 < n <= 1024]) == 8


def test_missing_samples_keep_their_segment_number():
  grids, patches, _ = packed(length=14)
  grids[1] = patches[1] = None
  row = packing.pack(grids, patches, 14, 12, axes=2)
  assert row.segments.tolist() == [1] * 3 + [3] * 2 + [0] * 9


def test_stack_batches_rows_and_keeps_absent_fields():
  rows = [
    Condition(label=np.full(2, i), sample_ids=np.arange(2)) for i in range(3)
  ]
  batch = packing.stack(rows)
  assert isinstance(batch, Condition)
  assert batch.label.tolist() == [[0, 0], [1, 1], [2, 2]]
  assert batch.sample_ids.shape == (3, 2)
  assert batch.time is batch.text is batch.text_segments is None


def random_sizes(seed, count=200):
  rng = np.random.default_rng(seed)
  draws = rng.integers(1, [60, 12], size=(count, 2))
  return [(int(a), int(b), 1) for a, b in draws]


@pytest.mark.parametrize("seed", range(3))
def test_first_fit_places_every_item_once_within_budget(seed):
  sizes, budget = random_sizes(seed), (64, 24, 5)
  rows = first_fit(sizes, budget)
  assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
  for row in rows:
    assert np.all(np.sum([sizes[i] for i in row], axis=0) <= budget)


def test_first_fit_depends_on_its_arguments_only():
  sizes = random_sizes(0)
  first = first_fit(sizes, (64, 24, 5))
  assert first == first_fit([list(size) for size in sizes], [64, 24, 5])
  assert first == first_fit(np.asarray(sizes), np.asarray((64, 24, 5)))


def test_first_fit_places_the_largest_first():
  assert first_fit([(2,), (3,), (4,), (5,)], (7,)) == [[0, 3], [1, 2]]
  assert first_fit([], (7,)) == []


def test_an_item_over_budget_is_named():
  with pytest.raises(ValueError, match=r"item 1 has size \(4, 9\).*\(8, 8\)"):
    first_fit([(1, 1), (4, 9)], (8, 8))
