"""Synthetic latents: the pattern of a class under new noise."""

import dataclasses
import functools

import numpy as np
import pytest
from support.shards import grid, tokenize

from data_pipelines.batches import Batches
from data_pipelines.source import Draw
from data_pipelines.synthetic import SyntheticConfig, pattern
from lumina_jax.encoders import label
from lumina_jax.tokens import Grid

CLASSES = SyntheticConfig(
  sizes=((8, 8),),
  records_per_size=16,
  classes=10,
  caption="{}",
  condition_dropout=0.1,
  signal=0.8,
  row_tokens=16,
  row_words=1,
  row_samples=1,
)
TEXTS = dataclasses.replace(
  CLASSES,
  sizes=((4, 16), (8, 8), (10, 6), (16, 4)),
  caption="pattern {}",
  row_tokens=64,
  row_words=32,
  row_samples=4,
)
TOKENIZE = {CLASSES: functools.partial(label.tokenize, 10), TEXTS: tokenize}
both = pytest.mark.parametrize(
  "cfg", [CLASSES, TEXTS], ids=["classes", "texts"]
)


def latents(cfg=CLASSES, seed=0, **changes):
  changed = dataclasses.replace(cfg, **changes)
  return changed.make_source(4, grid, TOKENIZE[cfg], seed)


def prompts_and_latents(source, records):
  samples = [source.sample(Draw(0, record, record)) for record in records]
  latents = [s.grid.detokenize(s.patches) for s in samples]
  return [s.caption for s in samples], latents


@both
def test_a_draw_always_gives_the_same_latents(cfg):
  forth, back = latents(cfg), latents(cfg)
  draws = [Draw(epoch, r, r) for epoch in (0, 3) for r in (0, 7, 15)]
  first = {draw: forth.sample(draw) for draw in draws}
  for draw in reversed(draws):
    again = back.sample(draw)
    np.testing.assert_array_equal(first[draw].patches, again.patches)
    np.testing.assert_array_equal(first[draw].text, again.text)


@pytest.mark.parametrize("other", [dict(epoch=1), dict(record=1), dict(seed=1)])
def test_other_epochs_records_and_seeds_give_other_latents(other):
  def patches(epoch=0, record=0, seed=0):
    return latents(seed=seed).sample(Draw(epoch, record, record)).patches

  assert not np.array_equal(patches(), patches(**other))


def test_sizes_come_equally_often_and_hold():
  source = latents(TEXTS)
  sizes = source.sizes
  assert len(sizes) == len(TEXTS.sizes) * TEXTS.records_per_size
  shapes = []
  for record, (tokens, words, samples) in enumerate(sizes):
    sample = source.sample(Draw(1, record, record))
    assert len(sample.patches) == sample.grid.num_tokens == tokens
    assert len(sample.text) <= words and samples == 1
    shapes.append(sample.grid.shape)
  assert all(shapes.count(s) == TEXTS.records_per_size for s in TEXTS.sizes)


def test_rows_hold_samples_of_several_sizes():
  batches = Batches(latents(TEXTS), TEXTS.budget, 4, seed=0)
  for i in range(6):
    tokens, condition = batches.batch(i)
    assert tokens.patches.shape == (4, 64, 16)
    assert condition.text.shape[:2] == (4, 32)
  counts = [tuple(np.bincount(row)[1:]) for row in tokens.segments]
  assert {len(row) for row in counts} == {4}
  assert len(set().union(*counts)) > 1


def test_classes_have_patterns_of_their_own():
  source = latents(records_per_size=256, condition_dropout=0.0, signal=0.6)
  prompts, samples = prompts_and_latents(source, range(256))
  flat = np.stack([x.ravel() for x in samples])
  equal = np.equal.outer(prompts, prompts) & ~np.eye(256, dtype=bool)
  inner = flat @ flat.T / flat.shape[1]
  assert set(prompts) == {str(c) for c in range(10)}
  assert np.mean(inner[equal]) == pytest.approx(0.6, abs=0.25)
  others = ~equal & ~np.eye(256, dtype=bool)
  assert abs(np.mean(inner[others])) < 0.1


def test_noise_is_new_in_each_record_and_of_its_share():
  source = latents(records_per_size=256, condition_dropout=0.0, signal=0.6)
  prompts, samples = prompts_and_latents(source, range(256))
  clean = [pattern(int(p), (8, 8), 4) for p in prompts]
  noise = np.stack(samples) - 0.6**0.5 * np.stack(clean)
  assert np.var(noise) == pytest.approx(0.4, rel=0.05)
  flat = noise.reshape(256, -1)
  correlation = np.corrcoef(flat) - np.eye(256)
  assert np.abs(correlation).max() < 0.4


def test_patterns_have_about_unit_variance_and_are_smooth():
  x = np.stack([pattern(label, (32, 32), 4) for label in range(100)])
  assert x.dtype == np.float32
  assert np.var(x) == pytest.approx(1, abs=0.1)
  assert np.var(np.diff(x, axis=1)) < 0.2


def test_a_pattern_looks_the_same_at_every_size():
  """The mean of 3 x 3 values of a finer pattern is the coarser one."""
  fine, coarse = (pattern(5, (side, side), 4) for side in (96, 32))
  averaged = fine.reshape(32, 3, 32, 3, 4).mean((1, 3))
  np.testing.assert_allclose(averaged, coarse, atol=0.05)


@pytest.mark.parametrize("shape", [(24,), (4, 6, 8)])
def test_latents_of_any_rank(shape):
  cfg = dataclasses.replace(TEXTS, sizes=(shape,), records_per_size=2)
  axes = len(shape)
  grid = lambda *size: Grid(size, (2,) * axes, True, False)  # noqa: E731
  source = cfg.make_source(3, grid, tokenize, 0)
  sample = source.sample(Draw(0, 1, 1))
  assert sample.grid.shape == shape
  assert sample.grid.detokenize(sample.patches).shape == (*shape, 3)


@both
def test_prompts_name_the_class_and_are_dropped_at_their_share(cfg):
  source = latents(cfg, records_per_size=600, condition_dropout=0.3)
  prompts, _ = prompts_and_latents(source, range(600))
  assert set(prompts) == {"", *(cfg.caption.format(c) for c in range(10))}
  assert prompts.count("") / 600 == pytest.approx(0.3, abs=0.05)


def test_dropping_a_prompt_leaves_the_latents_unchanged():
  some, none = (
    latents(condition_dropout=p).sample(Draw(2, 9, 9)) for p in (1.0, 0.0)
  )
  np.testing.assert_array_equal(some.patches, none.patches)
  assert some.text.tolist() == [[10]] != none.text.tolist()


def test_classes_that_the_network_lacks_are_refused():
  with pytest.raises(ValueError, match=r"'10': the classes .* 0 to 9"):
    _ = latents(classes=11).sizes
