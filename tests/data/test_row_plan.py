"""The row plan: a pure function that deals every record once an epoch."""

import functools

import numpy as np
import pytest

from configs import digits as config_file
from data_pipelines import row_plan
from data_pipelines.digits import DigitsConfig
from data_pipelines.row_plan import CHUNK, RowPlan
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders import utf8

BUDGET = (16, 6, 3)


def some_sizes(count=CHUNK + 40):
  rng = np.random.default_rng(0)
  return [(int(a), int(b), 1) for a, b in rng.integers(1, 6, (count, 2))]


@functools.cache
def plan(seed=0):
  return RowPlan(some_sizes(), BUDGET, seed)


def draws(plan, epoch):
  start = epoch * plan.rows_per_epoch
  return [plan.row(k) for k in range(start, start + plan.rows_per_epoch)]


def epoch_rows(plan, epoch):
  """Epoch and records of each row."""
  rows = draws(plan, epoch)
  return [(row[0].epoch, [draw.record for draw in row]) for row in rows]


def test_rows_do_not_depend_on_the_order_of_reading():
  other = RowPlan(some_sizes(), BUDGET, seed=0)
  rows = np.random.default_rng(1).permutation(3 * other.rows_per_epoch)[:200]
  read = {int(k): other.row(int(k)) for k in rows}
  assert all(plan().row(k) == read[k] for k in sorted(read))


def test_another_seed_makes_another_plan():
  assert epoch_rows(plan(), 0) != epoch_rows(plan(seed=1), 0)


@pytest.mark.parametrize("epoch", [0, 7])
def test_an_epoch_holds_every_record_once_within_the_budget(epoch):
  rows, sizes = epoch_rows(plan(), epoch), np.asarray(some_sizes())
  assert {number for number, _ in rows} == {epoch}
  dealt = [record for _, records in rows for record in records]
  assert sorted(dealt) == list(range(len(sizes)))
  for _, records in rows:
    assert records
    assert np.all(sizes[records].sum(axis=0) <= BUDGET)


def test_epochs_differ():
  first, second = ([r for _, r in epoch_rows(plan(), e)] for e in (0, 1))
  assert first != second
  assert sorted(map(sorted, first)) != sorted(map(sorted, second))


def test_rows_are_shuffled_in_each_epoch():
  sizes = some_sizes()
  layouts = [
    [sorted(sizes[r] for r in records) for _, records in epoch_rows(plan(), e)]
    for e in (0, 1)
  ]
  assert layouts[0] != layouts[1]
  assert sorted(layouts[0]) == sorted(layouts[1])


def test_the_seed_decides_every_shuffle():
  def moves(seed):
    """Where the rows of epoch 0, a record each, stand in epoch 1."""
    alone = RowPlan([(n,) for n in range(11, 21)], (20,), seed)
    first, second = ([r for _, r in epoch_rows(alone, e)] for e in (0, 1))
    return [second.index(records) for records in first]

  assert moves(0) == moves(0)
  assert moves(0) != moves(1)


@pytest.mark.parametrize("variant", ["flag", "next"])
def test_rows_of_digits_hold_at_least_95_percent_tokens(variant):
  config = config_file.get_config(variant)
  data = DigitsConfig(**config.data)
  grid = ModelConfig(**config.model).grid
  tokenize = functools.partial(
    utf8.tokenize, utf8.Utf8Config(**config.text_encoder)
  )
  sizes = data.make_source(1, grid, tokenize, config.seed).sizes
  digits = RowPlan(sizes, data.budget, config.seed)
  used = sum(tokens for tokens, _, _ in sizes)
  assert used >= 0.95 * data.row_tokens * digits.rows_per_epoch
  assert digits.usage == used / (data.row_tokens * digits.rows_per_epoch)
  for _, records in epoch_rows(digits, 1):
    assert np.all(np.sum([sizes[r] for r in records], axis=0) <= data.budget)


def count(plan, epochs, records):
  """How often each record is drawn in this many epochs."""
  dealt = [
    d.record for e in range(epochs) for row in draws(plan, e) for d in row
  ]
  return np.bincount(dealt, minlength=records)


def test_records_take_slots_of_their_own_kind_only():
  sizes = some_sizes(300)
  kinds = [f"kind {record % 7}" for record in range(300)]
  mixed = RowPlan(sizes, BUDGET, 0, kinds)
  drawn = [d for row in draws(mixed, 2) for d in row]
  assert all(kinds[d.record] == kinds[d.slot] for d in drawn)
  assert any(d.record != d.slot for d in drawn)
  for row in draws(mixed, 2):
    assert np.all(np.sum([sizes[d.slot] for d in row], axis=0) <= BUDGET)


@pytest.mark.parametrize("weight", [1.0, 2.0, 10 / 3])
def test_weights_are_how_often_a_record_is_drawn(weight):
  sizes = [(1, 1, 1)] * 60
  kinds = [record < 30 for record in range(60)]
  weights = [7.0] * 30 + [7.0 * weight] * 30
  mixed = RowPlan(sizes, BUDGET, 0, kinds, weights)
  drawn = count(mixed, 12, 60)
  assert (drawn[:30] == 12).all()
  assert drawn[30:].mean() == pytest.approx(12 * weight, rel=0.01)
  # Each is drawn as often as the others, up to the turn in progress.
  assert np.ptp(drawn[30:]) <= 1


def test_no_draw_comes_twice():
  weights = [1.0] * 20 + [2.5] * 20
  mixed = RowPlan(
    [(1, 1, 1)] * 40, BUDGET, 0, [w > 1 for w in weights], weights
  )
  drawn = [
    (d.epoch, d.record) for e in range(6) for r in draws(mixed, e) for d in r
  ]
  assert len(set(drawn)) == len(drawn)


FAR = r"from {:g} to 1: .* takes {} slots, more than 20,000,000. Raise the"


@pytest.mark.parametrize(
  ("sizes", "weights", "message"),
  [
    ([], None, "no records"),
    (
      [(1, 1, 1), (17, 1, 1)],
      None,
      r"size \(17, 1, 1\), which exceeds the budget",
    ),
    ([(1, 1, 1)] * 2, [1.0], "1 weights of 2 records"),
    ([(1, 1, 1)] * 2, [1.0, 0.0], "must be positive and finite"),
    ([(1, 1, 1)] * 2, [1.0, -1.0], "must be positive and finite"),
    ([(1, 1, 1)] * 2, [1.0, np.inf], "must be positive and finite"),
    ([(1, 1, 1)] * 2, [1.0, np.nan], "must be positive and finite"),
    (
      [(1, 1, 1)] * 2000,
      [1.0] * 1000 + [1e-7] * 1000,
      FAR.format(1e-7, "10,000,001,000"),
    ),
    (
      [(1, 1, 1)] * 2000,
      [1.0] * 1000 + [1e-320] * 1000,
      FAR.format(1e-320, "inf"),
    ),
  ],
)
def test_records_and_weights_that_make_no_plan(sizes, weights, message):
  with pytest.raises(ValueError, match=message):
    RowPlan(sizes, BUDGET, 0, weights=weights)


def test_any_number_of_records_of_equal_weight_is_allowed(monkeypatch):
  monkeypatch.setattr(row_plan, "MAX_SLOTS", 10)
  assert RowPlan([(1, 1, 1)] * 30, BUDGET, 0, weights=[0.1] * 30).rows_per_epoch
