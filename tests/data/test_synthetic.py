"""Synthetic latents: a pattern that belongs to the class, and fresh noise."""

import dataclasses
import functools

import numpy as np
import pytest
from support.configs import tiny_config

from data_pipelines.batches import Batches
from data_pipelines.source import Draw
from data_pipelines.synthetic import SyntheticLatents, pattern
from lumina_jax.tokens import Grid

families = pytest.mark.parametrize("family", ["imagenet", "text_to_image"])


@functools.cache
def run(family="imagenet"):
  return tiny_config(family)


def config(family="imagenet", **changes):
  return dataclasses.replace(run(family).data, **changes)


def latents(family="imagenet", seed=0, tokenize=None, **changes):
  model = run(family).model
  tokenize = tokenize or run(family).network.tokenize
  cfg = config(family, **changes)
  return SyntheticLatents(cfg, model.channels, model.grid, tokenize, seed)


def spelled(source, records):
  """What the prompts of the records were, by a tokenizer that keeps them."""
  prompts = []
  source._tokenize = lambda prompt: prompts.append(prompt) or np.zeros((1, 1))
  samples = [source.sample(Draw(0, record, record)) for record in records]
  return prompts, [s.grid.detokenize(s.patches) for s in samples]


@families
def test_a_record_is_the_same_whenever_it_is_asked_for(family):
  forth, back = latents(family), latents(family)
  places = [(epoch, record) for epoch in (0, 3) for record in (0, 7, 15)]
  first = [forth.sample(Draw(*place, place[1])) for place in places]
  second = [back.sample(Draw(*place, place[1])) for place in reversed(places)][
    ::-1
  ]
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a.patches, b.patches)
    np.testing.assert_array_equal(a.text, b.text)


@pytest.mark.parametrize("other", [dict(epoch=1), dict(record=1), dict(seed=1)])
def test_other_epochs_records_and_seeds_give_other_latents(other):
  def patches(epoch=0, record=0, seed=0):
    return latents(seed=seed).sample(Draw(epoch, record, record)).patches

  assert not np.array_equal(patches(), patches(**other))


def test_sizes_come_equally_often_and_hold():
  cfg = config("text_to_image")
  source = latents("text_to_image")
  sizes = source.sizes
  assert len(sizes) == len(cfg.sizes) * cfg.records_per_size
  shapes = []
  for record, (tokens, words, samples) in enumerate(sizes):
    sample = source.sample(Draw(1, record, record))
    assert len(sample.patches) == sample.grid.num_tokens == tokens
    assert len(sample.text) <= words and samples == 1
    shapes.append(sample.grid.shape)
  assert all(shapes.count(s) == cfg.records_per_size for s in cfg.sizes)


def test_rows_hold_samples_of_several_sizes():
  config = run("text_to_image")
  batches = Batches(latents("text_to_image"), config.data.budget, 4, seed=0)
  for i in range(6):
    tokens, condition = batches.batch(i)
    assert tokens.patches.shape == (4, 64, 16)
    assert condition.text.shape[:2] == (4, 32)
  counts = [tuple(np.bincount(row)[1:]) for row in tokens.segments]
  assert {len(row) for row in counts} == {4}
  assert len(set().union(*counts)) > 1


def test_classes_have_patterns_of_their_own():
  source = latents(records_per_size=256, condition_dropout=0.0, signal=0.6)
  prompts, drawn = spelled(source, range(256))
  flat = np.stack([x.ravel() for x in drawn])
  alike = np.equal.outer(prompts, prompts) & ~np.eye(256, dtype=bool)
  inner = flat @ flat.T / flat.shape[1]
  assert set(prompts) == {str(c) for c in range(10)}
  assert np.mean(inner[alike]) == pytest.approx(0.6, abs=0.25)
  others = ~alike & ~np.eye(256, dtype=bool)
  assert abs(np.mean(inner[others])) < 0.1


def test_noise_is_new_in_each_record_and_of_its_share():
  source = latents(records_per_size=256, condition_dropout=0.0, signal=0.6)
  prompts, drawn = spelled(source, range(256))
  clean = [pattern(int(p), (8, 8), 4) for p in prompts]
  noise = np.stack(drawn) - 0.6**0.5 * np.stack(clean)
  assert np.var(noise) == pytest.approx(0.4, rel=0.05)
  flat = noise.reshape(256, -1)
  correlation = np.corrcoef(flat) - np.eye(256)
  assert np.abs(correlation).max() < 0.4


def test_patterns_have_about_unit_variance_and_are_smooth():
  x = np.stack([pattern(label, (32, 32), 4) for label in range(200)])
  assert x.dtype == np.float32
  assert np.var(x) == pytest.approx(1, abs=0.1)
  assert np.var(np.diff(x, axis=1)) < 0.2


def test_a_pattern_is_the_same_picture_at_every_size():
  """Averaged by threes, a finer one agrees with the coarser one."""
  fine, coarse = (pattern(5, (side, side), 4) for side in (96, 32))
  averaged = fine.reshape(32, 3, 32, 3, 4).mean((1, 3))
  np.testing.assert_allclose(averaged, coarse, atol=0.05)


@pytest.mark.parametrize("shape", [(24,), (4, 6, 8)])
def test_media_of_any_rank(shape):
  cfg = config(sizes=(shape,), records_per_size=2)
  axes = len(shape)
  grid = lambda *size: Grid(size, (2,) * axes, True, False)  # noqa: E731
  source = SyntheticLatents(cfg, 3, grid, run().network.tokenize, 0)
  sample = source.sample(Draw(0, 1, 1))
  assert sample.grid.shape == shape
  assert sample.grid.detokenize(sample.patches).shape == (*shape, 3)


@families
def test_prompts_name_the_class_and_are_dropped_at_their_share(family):
  source = latents(family, records_per_size=1000, condition_dropout=0.3)
  prompts, _ = spelled(source, range(1000))
  caption = "{}" if family == "imagenet" else "pattern {}"
  assert set(prompts) == {"", *(caption.format(c) for c in range(10))}
  assert prompts.count("") / 1000 == pytest.approx(0.3, abs=0.05)


def test_dropping_a_prompt_leaves_the_latents_unchanged():
  some, none = (
    latents(condition_dropout=p).sample(Draw(2, 9, 9)) for p in (1.0, 0.0)
  )
  np.testing.assert_array_equal(some.patches, none.patches)
  assert some.text.tolist() == [[10]] != none.text.tolist()


def test_classes_that_the_network_lacks_are_refused():
  with pytest.raises(ValueError, match=r"'10': the classes .* 0 to 9"):
    _ = latents(classes=11).sizes


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(sizes=()), "sizes"),
    (dict(sizes=((8, 8), (8,))), "as many axes"),
    (dict(classes=0), "classes = 0"),
    (dict(records_per_size=0), "records_per_size = 0"),
    (dict(condition_dropout=1.5), "condition_dropout 1.5"),
    (dict(signal=-0.1), "signal -0.1"),
    (dict(caption="pattern"), "caption 'pattern'"),
  ],
)
def test_numbers_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    config(**change)
