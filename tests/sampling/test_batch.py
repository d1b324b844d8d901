"""Requests packed into rows: each once, in place, and found again."""

import dataclasses

import jax
import numpy as np
import pytest
from support.configs import small_config

from lumina_jax.sampling.batch import make_batches
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.times import time_grid

CONFIG = small_config()
MODEL, OPTIONS = CONFIG.model, CONFIG.sampling
RNG = np.random.default_rng(0)


def request(shape, words=2, scale=2.0, negative=1, **fields):
  width = CONFIG.network.code_width
  codes = [np.full((n, width), n, np.int32) for n in (words, negative)]
  grid = MODEL.grid(*shape)
  return Request("7", grid, *codes, 5, 0, scale, natural=grid, **fields)


def batches(requests, sizes=CONFIG.sizes, divisors=(1, 1), **options):
  options = dataclasses.replace(OPTIONS, **options)
  times = time_grid(options)
  return list(
    make_batches(requests, CONFIG.network, options, sizes, times, divisors)
  )


SHAPES = [(8, 8), (8, 24), (16, 16)] * 5


def test_every_sample_is_once_in_the_batches_and_comes_back():
  sizes = dataclasses.replace(CONFIG.sizes, rows=2)
  values = [RNG.standard_normal((*s, 1)).astype("f4") for s in SHAPES]
  found = batches([request(s) for s in SHAPES], sizes)
  assert len(found) > 1
  assert len({str(jax.tree.map(np.shape, b.inputs)) for b in found}) == 1
  numbers = [p.number for batch in found for p in batch.places]
  assert sorted(numbers) == list(range(len(SHAPES)))
  for batch in found:
    own = {p.number: values[p.number] for p in batch.places}
    patches = batch.pack(own)
    padding = np.asarray(batch.inputs.tokens.segments) == 0
    np.testing.assert_array_equal(patches[padding], 0)
    for number, value in batch.unpack(patches).items():
      np.testing.assert_array_equal(value, values[number])


def test_rows_and_tokens_divide_over_a_mesh():
  (batch,) = batches([request((8, 8))], divisors=(3, 64))
  rows, length = batch.inputs.tokens.segments.shape
  assert rows % 3 == 0 and length % 64 == 0


def test_without_a_ladder_each_row_holds_one_sample():
  sizes = dataclasses.replace(CONFIG.sizes, ladder=(), rows=2)
  found = batches([request((8, 8), words) for words in (1, 1, 1)], sizes)
  assert [len(batch.places) for batch in found] == [2, 1]
  assert found[0].inputs.condition.text.shape[1] == 1
  (longer,) = batches([request((8, 8), words=3)], sizes)
  assert longer.inputs.condition.text.shape[1] == 64


def test_only_guided_batches_have_a_second_branch():
  (plain,) = batches([request((8, 8), scale=1.0)])
  assert plain.inputs.negative is None
  (mixed,) = batches([request((8, 8), scale=s) for s in (1.0, 3.0)])
  assert mixed.inputs.negative is not None
  scales = mixed.per_sample(mixed.inputs.guidance.scale)
  assert scales == {0: 1.0, 1: 3.0}
  # At scale 0 the negative prompt alone counts, unless guidance has limits.
  (zero,) = batches([request((8, 8), scale=0.0)])
  assert zero.inputs.negative is None
  np.testing.assert_array_equal(zero.inputs.condition.text[0, 0], 1)
  (limited,) = batches([request((8, 8), scale=0.0)], guidance_renorm=1.0)
  assert limited.inputs.negative is not None


def test_samples_in_place_of_noise_lie_at_their_tokens():
  latents = RNG.standard_normal((8, 8, 1)).astype("f4")
  (batch,) = batches([request((8, 8), latents=latents)])
  found = batch.unpack(batch.inputs.latents)[0]
  np.testing.assert_array_equal(found, latents)
  assert batch.inputs.initial is None


def test_other_features_of_prompts_must_fit_their_row():
  (batch,) = batches([request((8, 8))])
  codes = np.full((3, CONFIG.network.code_width), 9, np.int32)
  changed = batch.with_text("condition", {0: codes}).inputs.condition
  assert changed.text.shape == batch.inputs.condition.text.shape
  assert (np.asarray(changed.text_segments) == 1).sum() == 3
  long = np.tile(codes, (batch.words, 1))
  with pytest.raises(ValueError, match="do not fit a row of"):
    batch.with_text("condition", {0: long})
