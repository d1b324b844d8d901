"""Sizes beyond the trained one: what the original's samplers compute."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.backbone.rope import RULES
from lumina_jax.files import schema
from lumina_jax.pretrained import defaults
from lumina_jax.sampling.extrapolation import Extrapolation

NEXT = PUBLISHED["next_dit_t2i_2b_gqa"]
FLAG = PUBLISHED["flag_dit_t2i_5b"]


def of(model):
  return defaults.sampling(model, 128).beyond


def test_next_dit_leaves_trained_and_smaller_sizes_alone():
  rule = of(NEXT)
  for pixels in ((1024, 1024), (512, 2048), (256, 256)):
    assert rule.stretch(NEXT.grid(*(side // 8 for side in pixels))) == 1


def test_next_dit_beyond_the_trained_size():
  """From 1024 to 2048 pixels; the number is the original's, for head dim 72."""
  rule, grid = of(NEXT), NEXT.grid(256, 256)
  assert rule.stretch(grid) == 2
  assert rule.attention_scale(grid) / math.sqrt(72) == pytest.approx(
    0.127294, abs=1e-6
  )
  assert rule.attention_scale(NEXT.grid(128, 128)) == 1


def test_next_dit_is_linear_until_the_watershed_then_ntk():
  """Golden rates of the original, head dim 72, ratio 2."""
  rule = of(NEXT).positions(np.full((1, 2), 2, np.float32))
  time = np.float32([[0.1, 0.5]])
  rates = np.asarray(rule.rates(time, 72, 2, 10_000.0))[0, :, ::2]
  np.testing.assert_allclose(rates[0, :3], [0.5, 0.299742, 0.179691], atol=1e-6)
  np.testing.assert_allclose(rates[1, :3], [1, 0.576838, 0.332742], atol=1e-6)


def test_flag_dit_multiplies_theta_by_the_ratio_of_areas_at_every_size():
  rule = of(FLAG)
  assert (rule.rule, rule.base_tokens) == ("ntk_plain", 64**2 + 2 * 64)
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
  assert of(FLAG).attention_scale(grid) == pytest.approx(expected)


# Latents of 12 x 20 and of 6 x 10 patches.
LARGE, NATURAL = (24, 40), (12, 20)


def natural(rule):
  """Every picture has a size of its own."""
  return Extrapolation(rule, side=0, base_tokens=0)


def test_a_natural_size_takes_the_place_of_the_trained_square():
  rule = natural("watershed")
  grid, base = NEXT.grid(*LARGE), NEXT.grid(*NATURAL)
  assert rule.stretch(grid, base) == 2 and rule.stretch(base, base) == 1
  assert rule.trained(grid, base) == pytest.approx(math.sqrt(6 * 10))
  expected = math.sqrt(math.log(12 * 20) / math.log(6 * 10))
  assert rule.attention_scale(grid, base) == pytest.approx(expected)
  assert rule.attention_scale(base, base) == 1
  # Also where there is a square: 20 patches along a side.
  beyond = Extrapolation("watershed", side=40, base_tokens=400)
  assert beyond.stretch(grid, base) == 2 and beyond.stretch(grid) == 1


def test_the_natural_size_of_a_raster_counts_all_its_tokens():
  rule = natural("yarn")
  grid, base = FLAG.grid(*LARGE), FLAG.grid(*NATURAL)
  assert rule.stretch(grid, base) == 4
  assert rule.trained(grid, base) == 6 * 10 + 6


def test_without_square_and_natural_size_nothing_is_known():
  rule, grid = natural("watershed"), NEXT.grid(*LARGE)
  for method in (rule.stretch, rule.trained, rule.attention_scale):
    with pytest.raises(ValueError, match="side = 0: without a trained square"):
      method(grid)
  never = dataclasses.replace(rule, rule="none", proportional=False)
  assert never.stretch(grid) == never.attention_scale(grid) == 1


def test_positions_along_an_axis_in_training():
  assert of(NEXT).trained(NEXT.grid(256, 128)) == 64
  assert of(FLAG).trained(FLAG.grid(256, 128)) == 64 * 65


def test_frames_and_time_are_stretched_as_what_they_are():
  video = dataclasses.replace(NEXT, patch=(1, 2, 2))
  # Sides of three axes are those of a frame.
  assert of(NEXT).stretch(video.grid(5, 256, 256)) == 2
  assert of(NEXT).trained(video.grid(5, 256, 256)) == 64
  audio = dataclasses.replace(NEXT, patch=(1,))
  assert of(NEXT).stretch(audio.grid(512)) == 4


@pytest.mark.parametrize("rule", ["watershed", "ntk", "none"])
def test_configs_of_older_runs_load(rule):
  values = dict(
    rule=rule,
    side=128,
    base_tokens=4096,
    watershed=0.3,
    below=False,
    proportional=True,
  )
  assert schema.parse(Extrapolation, values) == Extrapolation(rule, 128, 4096)


@pytest.mark.parametrize("rule", RULES)
def test_any_rule_as_arrays_of_samples(rule):
  """Of rows and samples, so that both branches of guidance fit in a batch."""
  beyond = dataclasses.replace(of(NEXT), rule=rule)
  stretch = np.float32([[1, 2, 3]])
  positions = beyond.positions(stretch, np.float32([[64, 64, 32]]))
  assert positions.rule == rule
  for leaf in jax.tree.leaves(positions):
    assert (leaf.shape, leaf.dtype) == ((1, 3), np.float32)
  both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *[positions] * 2)
  time = np.full((2, 3), 0.4, np.float32)
  rates = np.asarray(both.rates(time, 72, 2, 1e4))
  assert rates.shape == (2, 3, 36)
  np.testing.assert_array_equal(rates[0], rates[1])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(rule="yarm"), "unknown rule 'yarm'; did you mean 'yarn'"),
    (dict(side=0), "side = 0"),
    (dict(base_tokens=1), "base_tokens = 1"),
    (dict(base_tokens=0), "base_tokens = 0"),
    (dict(watershed=1.5), "watershed = 1.5: a time from 0"),
  ],
)
def test_wrong_rules_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Extrapolation(**dict(rule="ntk", side=128, base_tokens=4096) | fields)
