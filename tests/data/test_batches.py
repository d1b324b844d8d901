"""Batch i is a pure function of i, whoever asks and however many ask."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import digits as config_file
from data_pipelines.batches import Batches
from data_pipelines.digits import DigitCanvases, DigitsConfig, split
from data_pipelines.plan import RowPlan
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders import utf8

ROWS = 8
CONFIG = config_file.get_config()
CFG = dataclasses.replace(DigitsConfig(**CONFIG.data), records_per_canvas=30)
MODEL = ModelConfig(**CONFIG.model)


@functools.cache
def source():
  encoder = utf8.Utf8Config(**CONFIG.text_encoder)
  return DigitCanvases(
    CFG,
    split(CFG.held_out)[0],
    MODEL.grid,
    functools.partial(utf8.tokenize, encoder),
    seed=0,
  )


@functools.cache
def batches(process=0, processes=1):
  share = ROWS // processes
  mine = range(process * share, (process + 1) * share)
  return Batches(source(), CFG.budget, ROWS, 0, mine)


@functools.cache
def plan():
  return RowPlan(source().sizes, CFG.budget, 0)


def assert_equal(a: NamedTuple, b: NamedTuple):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def two_epochs():
  return range(2 * plan().rows_per_epoch // ROWS + 1)


def test_a_batch_is_the_same_whenever_it_is_asked_for():
  again = Batches(source(), CFG.budget, ROWS, 0)
  later = {i: again.batch(i) for i in (7, 0, 3)}
  for i, batch in later.items():
    assert_equal(batches().batch(i), batch)


@pytest.mark.parametrize("processes", [2, 4, 8])
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


def test_nothing_is_read_after_the_last_batch():
  assert list(batches().read(4, 4)) == []


def test_all_batches_have_the_same_shapes_and_types():
  described = {
    str(jax.tree.map(lambda x: (x.shape, x.dtype), batches().batch(i)))
    for i in two_epochs()
  }
  assert len(described) == 1
  tokens, condition = batches().batch(0)
  length, words, samples = CFG.budget
  assert tokens.patches.shape == (ROWS, length, MODEL.patch_dim)
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
    place = tokens.segments[row] == number
    np.testing.assert_array_equal(tokens.patches[row, place], sample.patches)
    np.testing.assert_array_equal(tokens.ids[row, place], sample.grid.ids)
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
