"""Sizes beyond the trained one: what the original's samplers compute."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.backbone.rope import RULES
from lumina_jax.pretrained import defaults
from lumina_jax.sampling.extrapolation import Extrapolation, extrapolation
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

NEXT = PUBLISHED["next_dit_t2i_2b_gqa"]
FLAG = PUBLISHED["flag_dit_t2i_5b"]


def published(model):
  return extrapolation(defaults.options(model), defaults.sizes(model, 128))


def test_next_dit_leaves_trained_and_smaller_sizes_alone():
  rule = published(NEXT)
  for pixels in ((1024, 1024), (512, 2048), (256, 256)):
    assert rule.stretch(NEXT.grid(*(side // 8 for side in pixels))) == 1


def test_next_dit_beyond_the_trained_size():
  """From 1024 to 2048 pixels; the number is the original's, for head dim 72."""
  rule, grid = published(NEXT), NEXT.grid(256, 256)
  assert rule.stretch(grid) == 2
  assert rule.attention_scale(grid) / math.sqrt(72) == pytest.approx(
    0.127294, abs=1e-6
  )
  assert rule.attention_scale(NEXT.grid(128, 128)) == 1


def test_next_dit_is_linear_until_the_watershed_then_ntk():
  """Golden rates of the original, head dim 72, ratio 2."""
  rule = published(NEXT).positions(np.full((1, 2), 2, np.float32))
  time = np.float32([[0.1, 0.5]])
  rates = np.asarray(rule.rates(time, 72, 2, 10_000.0))[0, :, ::2]
  np.testing.assert_allclose(rates[0, :3], [0.5, 0.299742, 0.179691], atol=1e-6)
  np.testing.assert_allclose(rates[1, :3], [1, 0.576838, 0.332742], atol=1e-6)


def test_flag_dit_multiplies_theta_by_the_ratio_of_areas_at_every_size():
  rule = published(FLAG)
  assert (rule.rule, rule.trained.tokens) == ("ntk_plain", 64**2 + 2 * 64)
  for pixels, ratio in (((2048, 1024), 2.0), ((512, 512), 0.25)):
    grid = FLAG.grid(*(side // 8 for side in pixels))
    assert rule.stretch(grid) == ratio
    positions = rule.positions(np.float32([[ratio]]))
    rates = np.asarray(positions.rates(np.zeros((1, 1), "f4"), 96, 1, 1e4))
    expected = (1e4 * ratio) ** (-2 * np.arange(48) / 96)
    np.testing.assert_allclose(rates[0, 0], expected, rtol=2e-6)


def test_separators_count_as_tokens():
  grid = FLAG.grid(128, 128)
  expected = math.sqrt(math.log(64 * 65) / math.log(64**2 + 2 * 64))
  assert published(FLAG).attention_scale(grid) == pytest.approx(expected)


# Latents of 12 x 20 and of 6 x 10 patches.
LARGE, NATURAL = (24, 40), (12, 20)


def by_natural_size(rule):
  return Extrapolation(rule, 0.3, proportional=True, trained=None)


def test_a_natural_size_replaces_the_trained_square():
  rule = by_natural_size("watershed")
  grid, base = NEXT.grid(*LARGE), NEXT.grid(*NATURAL)
  assert rule.stretch(grid, base) == 2 and rule.stretch(base, base) == 1
  assert rule.trained_extent(grid, base) == pytest.approx(math.sqrt(6 * 10))
  expected = math.sqrt(math.log(12 * 20) / math.log(6 * 10))
  assert rule.attention_scale(grid, base) == pytest.approx(expected)
  assert rule.attention_scale(base, base) == 1
  # Also where there is a square: 20 patches along a side.
  square = dataclasses.replace(rule, trained=TrainedSize(40, 400))
  assert square.stretch(grid, base) == 2 and square.stretch(grid) == 1


def test_the_natural_size_of_a_raster_counts_all_its_tokens():
  rule = by_natural_size("yarn")
  grid, base = FLAG.grid(*LARGE), FLAG.grid(*NATURAL)
  assert rule.stretch(grid, base) == 4
  assert rule.trained_extent(grid, base) == 6 * 10 + 6


def test_trained_extents_along_an_axis():
  assert published(NEXT).trained_extent(NEXT.grid(256, 128)) == 64
  assert published(FLAG).trained_extent(FLAG.grid(256, 128)) == 64 * 65


def test_frames_do_not_count_and_time_does():
  video = dataclasses.replace(NEXT, patch=(1, 2, 2))
  assert published(NEXT).stretch(video.grid(5, 256, 256)) == 2
  assert published(NEXT).trained_extent(video.grid(5, 256, 256)) == 64
  audio = dataclasses.replace(NEXT, patch=(1,))
  assert published(NEXT).stretch(audio.grid(512)) == 4


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_arrays_of_samples(rule):
  """Rows and samples, so that both branches of guidance fit in a batch."""
  beyond = dataclasses.replace(published(NEXT), rule=rule)
  positions = beyond.positions(
    np.float32([[1, 2, 3]]), np.float32([[64, 64, 32]])
  )
  assert positions.rule == rule
  for leaf in jax.tree.leaves(positions):
    assert (leaf.shape, leaf.dtype) == ((1, 3), np.float32)
  both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *[positions] * 2)
  time = np.full((2, 3), 0.4, np.float32)
  rates = np.asarray(both.rates(time, 72, 2, 1e4))
  assert rates.shape == (2, 3, 36)
  np.testing.assert_array_equal(rates[0], rates[1])


def test_an_unknown_trained_size_is_refused():
  unknown, options = SizeConfig(default=(8, 8)), defaults.options(NEXT)
  message = r"rope_scaling = 'watershed', .*set config\.sizes\.trained"
  with pytest.raises(ValueError, match=message):
    extrapolation(options, unknown)
  plain = dataclasses.replace(
    options, rope_scaling="none", proportional_attention=False
  )
  grid, found = NEXT.grid(*LARGE), extrapolation(plain, unknown)
  assert not found.active
  assert found.stretch(grid) == found.attention_scale(grid) == 1
