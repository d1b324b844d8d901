"""Sizes beyond the trained one: what the original's samplers compute."""

import math

import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.extrapolation import Extrapolation
from lumina_jax.pretrained import defaults

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
  assert rule.base_tokens == 64**2 + 2 * 64
  for pixels, ratio in (((2048, 1024), 2.0), ((512, 512), 0.25)):
    grid = FLAG.grid(*(side // 8 for side in pixels))
    positions = rule.positions(np.float32([[rule.stretch(grid)]]))
    rates = np.asarray(positions.rates(np.zeros((1, 1), "f4"), 96, 1, 1e4))
    expected = (1e4 * ratio) ** (-2 * np.arange(48) / 96)
    np.testing.assert_allclose(rates[0, 0], expected, rtol=2e-6)


def test_separators_count_as_tokens():
  grid = FLAG.grid(128, 128)
  expected = math.sqrt(math.log(64 * 65) / math.log(64**2 + 2 * 64))
  assert of(FLAG).attention_scale(grid) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(rule="yarn"), "rule 'yarn': use one of watershed, ntk, none"),
    (dict(side=0), "side = 0"),
    (dict(base_tokens=1), "base_tokens = 1"),
  ],
)
def test_wrong_rules_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Extrapolation(**dict(rule="ntk", side=128, base_tokens=4096) | fields)
