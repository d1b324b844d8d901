"""Batch i is a pure function of i; bad records leave holes and nothing else."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from support.shards import grid, tokenize

from data_pipelines.batches import Batches
from data_pipelines.mixture import Mixture
from data_pipelines.row_plan import RowPlan
from data_pipelines.source import BadRecord, Sample
from data_pipelines.source_config import LoaderOptions
from data_pipelines.synthetic import SyntheticConfig
from lumina_jax.tokens import Grid

ROWS = 8
BUDGET = (8, 4, 2)
CFG = SyntheticConfig(
  sizes=((4, 16), (8, 8), (10, 6), (16, 4)),
  records_per_size=32,
  classes=10,
  caption="pattern {}",
  condition_dropout=0.1,
  signal=0.8,
  row_tokens=64,
  row_words=8,
  row_samples=4,
)


@functools.cache
def source():
  return CFG.make_source(4, grid, tokenize, seed=0)


@functools.cache
def batches(process=0, processes=1):
  share = ROWS // processes
  own = range(process * share, (process + 1) * share)
  return Batches(source(), CFG.budget, ROWS, 0, own)


@functools.cache
def plan():
  return RowPlan(source().sizes, CFG.budget, 0)


class Numbers:
  """Records of one to four tokens that hold their own number."""

  def __init__(self, count, bad=()):
    self.sizes = [(1 + r % 4, 2, 1) for r in range(count)]
    self.kinds, self.bad = self.sizes, set(bad)

  def name(self, record):
    return f"number {record}"

  def sample(self, draw):
    if draw.record in self.bad:
      raise BadRecord(f"number {draw.record}: cannot be read")
    grid = Grid((self.sizes[draw.record][0], 1), (1, 1), False, False)
    patches = np.full((grid.num_tokens, 1), draw.record, np.float32)
    return Sample(grid, patches, np.full((2, 1), draw.record, np.int32))


def of_numbers(source, rows=4, **kwargs):
  return Batches(source, BUDGET, rows, 0, **kwargs)


def assert_equal(a: NamedTuple, b: NamedTuple):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def two_epochs():
  return range(2 * plan().rows_per_epoch // ROWS + 1)


def test_a_batch_depends_on_its_number_only():
  again = Batches(source(), CFG.budget, ROWS, 0)
  later = {i: again.batch(i) for i in (7, 0, 3)}
  for i, batch in later.items():
    assert_equal(batches().batch(i), batch)


@pytest.mark.parametrize("processes", [2, 8])
@pytest.mark.parametrize("i", [0, 11])
def test_processes_share_the_rows_of_one(processes, i):
  shares = [batches(p, processes).batch(i) for p in range(processes)]
  together = jax.tree.map(lambda *x: np.concatenate(x), *shares)
  assert_equal(together, batches().batch(i))


def test_read_resumes_exactly():
  whole = list(batches().read(0, 9))
  resumed = list(batches().read(5, 8))
  assert len(whole) == 9
  assert len(resumed) == 3
  for i, batch in enumerate(resumed, start=5):
    assert_equal(batch, whole[i])
    assert_equal(batch.batch, batches().batch(i))
  assert list(batches().read(4, 4)) == []


def test_all_batches_have_the_same_shapes_and_types():
  described = {
    str(jax.tree.map(lambda x: (x.shape, x.dtype), batches().batch(i)))
    for i in two_epochs()
  }
  assert len(described) == 1
  tokens, condition = batches().batch(0)
  length, words, samples = CFG.budget
  assert tokens.patches.shape == (ROWS, length, 2 * 2 * 4)
  assert condition.text.shape[:2] == (ROWS, words)
  assert condition.sample_ids.shape == (ROWS, samples)


def test_sample_ids_are_unique():
  ids = np.stack([batches().batch(i)[1].sample_ids for i in two_epochs()])
  assert len(np.unique(ids)) == ids.size


@pytest.mark.parametrize("k", [0, 5, 70])
def test_a_row_holds_the_samples_of_the_plan(k):
  tokens, condition = batches().batch(k // ROWS)
  row, draws = k % ROWS, plan().row(k)
  for number, draw in enumerate(draws, start=1):
    sample = source().sample(draw)
    segment = tokens.segments[row] == number
    np.testing.assert_array_equal(tokens.patches[row, segment], sample.patches)
    np.testing.assert_array_equal(tokens.ids[row, segment], sample.grid.ids)
    words = condition.text_segments[row] == number
    np.testing.assert_array_equal(condition.text[row, words], sample.text)
  assert tokens.segments[row].max() == len(draws)
  assert condition.text_segments[row].max() == len(draws)


def test_every_sample_has_text_and_padding_has_none():
  for i in range(6):
    tokens, condition = batches().batch(i)
    for row in range(ROWS):
      present = set(tokens.segments[row]) - {0}
      assert present == set(condition.text_segments[row]) - {0}
    assert not condition.text[condition.text_segments == 0].any()
    assert not tokens.patches[tokens.segments == 0].any()


def test_a_bad_record_is_a_hole_and_all_else_stays():
  whole, holed = of_numbers(Numbers(40)), of_numbers(Numbers(40, bad=[3, 17]))
  lost = 0
  for i in range(5):
    want, got = whole.load(i), holed.load(i)
    assert got.records == want.records
    gone = np.isin(want.batch[0].patches[..., 0], [3, 17])
    gone &= want.batch[0].segments != 0
    # Samples of a row keep their numbers, and so their noise.
    np.testing.assert_array_equal(
      want.batch[1].sample_ids, got.batch[1].sample_ids
    )
    for row in range(4):
      for segment in (1, 2):
        a = want.batch[0].patches[row][want.batch[0].segments[row] == segment]
        b = got.batch[0].patches[row][got.batch[0].segments[row] == segment]
        assert len(b) == 0 or (a == b).all()
        words = got.batch[1].text_segments[row] == segment
        assert words.any() == (len(b) > 0)
    lost += len(got.bad_records)
    assert len(got.bad_records) == len(
      {int(n) for n in want.batch[0].patches[gone].ravel()}
    )
  assert lost > 0


def test_a_row_of_bad_records_only_has_the_same_shapes():
  bad = of_numbers(Numbers(8, bad=range(1, 8)))
  rows = [bad.batch(i) for i in range(3)]
  assert {r[0].patches.shape for r in rows} == {(4, 8, 1)}
  assert {r[1].text.dtype for r in rows} == {np.dtype(np.int32)}
  assert any((r[0].segments == 0).all(axis=1).any() for r in rows)
  with pytest.raises(OSError, match="number 7: cannot be read"):
    of_numbers(Numbers(8, bad=range(8))).batch(0)


def test_names_are_those_of_the_records_of_a_batch():
  loader = of_numbers(Numbers(40))
  tokens = loader.batch(2)[0]
  held = np.unique(tokens.patches[tokens.segments != 0]).astype(int)
  assert {int(n.split()[1]) for n in loader.names(2)} >= set(held)


def test_samples_that_do_not_fit_a_row_are_refused():
  with pytest.raises(ValueError, match=r"takes \(4, 2, 1\).*data.row_tokens"):
    Batches(Numbers(4), (3, 4, 2), 1, 0)


@pytest.mark.parametrize(
  "options",
  [
    LoaderOptions(threads=3),
    pytest.param(LoaderOptions(workers=2), marks=pytest.mark.e2e),
  ],
)
def test_threads_and_workers_change_nothing(options):
  plain = of_numbers(Numbers(40, bad=[5]))
  other = of_numbers(Numbers(40, bad=[5]), options=options)
  for i, loaded in enumerate(other.read(0, 6)):
    assert_equal(loaded, plain.load(i))


def test_a_mixture_draws_by_weight_and_keeps_names():
  mixed = Mixture([Numbers(20), Numbers(10, bad=[4])], [1, 3])
  together = of_numbers(mixed, weights=mixed.weights)
  rows = round(together.per_epoch * 4)
  batches = range(-(-rows // 4))
  names = [n for i in batches for n in together.names(i)][: 20 + 30]
  assert mixed.name(24) == "number 4" and len(mixed.sizes) == 30
  assert len(names) == 50
  bad = [error for i in batches for error in together.load(i).bad_records]
  assert set(bad) == {"number 4: cannot be read"}
  second = Mixture([Numbers(20), Numbers(10)], [1, 3])
  alone = of_numbers(second, rows=1, weights=second.weights)
  held = np.concatenate([alone.batch(i)[0].segments for i in range(rows)])
  assert sum(np.unique(row[row > 0]).size for row in held) == 20 + 30


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0]])
def test_a_mixture_needs_a_positive_weight_for_each(weights):
  with pytest.raises(ValueError, match="2 sources with weights"):
    Mixture([Numbers(2), Numbers(2)], weights)
