"""Broken records leave holes, move nothing, are named, and may be too many."""

import numpy as np
import pytest

from data_pipelines.bad_records import FEWEST, Faults
from data_pipelines.batches import Batches, Reading
from data_pipelines.mixture import Mixture
from data_pipelines.source import BadRecord, Sample
from lumina_jax.tokens import Grid

BUDGET = (8, 4, 2)


class Numbers:
  """Records of one to four tokens that hold their own number."""

  def __init__(self, count, broken=()):
    self.sizes = [(1 + r % 4, 2, 1) for r in range(count)]
    self.kinds, self.broken = self.sizes, set(broken)

  def name(self, record):
    return f"number {record}"

  def sample(self, draw):
    if draw.record in self.broken:
      raise BadRecord(f"number {draw.record}: cannot be read")
    grid = Grid((self.sizes[draw.record][0], 1), (1, 1), False, False)
    patches = np.full((grid.num_tokens, 1), draw.record, np.float32)
    return Sample(grid, patches, np.full((2, 1), draw.record, np.int32))


def batches(source, **kwargs):
  return Batches(source, BUDGET, 4, 0, **kwargs)


def test_a_broken_record_is_a_hole_and_all_else_stays():
  whole, holed = batches(Numbers(40)), batches(Numbers(40, broken=[3, 17]))
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
    lost += len(got.faults)
    assert len(got.faults) == len(
      {int(n) for n in want.batch[0].patches[gone].ravel()}
    )
  assert lost > 0


def test_a_row_of_broken_records_only_has_the_same_shapes():
  broken = batches(Numbers(8, broken=range(1, 8)))
  rows = [broken.batch(i) for i in range(3)]
  assert {r[0].patches.shape for r in rows} == {(4, 8, 1)}
  assert {r[1].text.dtype for r in rows} == {np.dtype(np.int32)}
  assert any((r[0].segments == 0).all(axis=1).any() for r in rows)


def test_data_of_nothing_but_broken_records_say_so():
  with pytest.raises(OSError, match="number 7: cannot be read"):
    batches(Numbers(8, broken=range(8))).batch(0)


def test_names_are_those_of_the_records_of_a_batch():
  source = batches(Numbers(40))
  names = source.names(2)
  tokens = source.batch(2)[0]
  held = tokens.patches[tokens.segments != 0]
  assert {int(n.split()[1]) for n in names} >= {int(x) for x in np.unique(held)}


@pytest.mark.parametrize("reading", [Reading(threads=3), Reading(workers=2)])
def test_who_reads_changes_nothing(reading):
  plain = batches(Numbers(40, broken=[5]))
  other = batches(Numbers(40, broken=[5]), reading=reading)
  for i, loaded in enumerate(other.read(0, 6)):
    want = plain.load(i)
    assert loaded.faults == want.faults
    for a, b in zip(loaded.batch, want.batch, strict=True):
      for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_faults_are_named_and_counted(caplog):
  faults = Faults(0.5)
  for number in range(30):
    faults.add((f"file {number}: cut short",), 10)
  assert faults.count == 30 and faults.records == 300
  named = [r.getMessage() for r in caplog.records]
  assert len(named) == 20 and "file 0: cut short" in named[0]


def test_too_many_faults_stop_the_run():
  faults = Faults(0.1)
  faults.add(("a",) * (FEWEST // 10), 10)  # So few records prove nothing.
  with pytest.raises(OSError, match=r"data.bad_limit = 0.1; the last one: b"):
    faults.add(("b",), 1)


def test_a_mixture_draws_by_weight_and_keeps_names():
  mixed = Mixture([Numbers(20), Numbers(10, broken=[4])], [1, 3])
  together = batches(mixed, weights=mixed.weights)
  rows = round(together.per_epoch * 4)
  names = [n for i in range(-(-rows // 4)) for n in together.names(i)][
    : 20 + 30
  ]
  assert mixed.name(24) == "number 4" and len(mixed.sizes) == 30
  assert len(names) == 50
  faults = [f for i in range(-(-rows // 4)) for f in together.load(i).faults]
  assert set(faults) == {"number 4: cannot be read"}
  second = Mixture([Numbers(20), Numbers(10)], [1, 3])
  held = np.concatenate(
    [Batches(second, BUDGET, 1, 0, weights=second.weights).batch(i)[0].segments
     for i in range(rows)]
  )  # fmt: skip
  assert sum(np.unique(row[row > 0]).size for row in held) == 20 + 30


def test_a_mixture_needs_a_weight_for_each():
  with pytest.raises(ValueError, match="2 sources with weights"):
    Mixture([Numbers(2), Numbers(2)], [1.0])
