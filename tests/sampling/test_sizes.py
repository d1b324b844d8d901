"""Sizes of samples: from arguments and prompts to grids of latents."""

import dataclasses
import types

import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.media import AUDIO, IMAGE, VIDEO
from lumina_jax.sampling import request
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

MODEL = PUBLISHED["next_dit_t2i_2b_gqa"]
DIGITS = SizeConfig((8, 8), rule="digits", ladder=((64, 16, 4),))
LENGTHS = SizeConfig((312,), rate=31.25)


def components(medium, config, factors=None):
  axes = len(medium.axes)
  patch = (1,) if axes == 1 else (1, 2, 2)[-axes:]
  return types.SimpleNamespace(
    medium=medium,
    network=types.SimpleNamespace(
      model=dataclasses.replace(MODEL, patch=patch)
    ),
    sizes=config,
    factors=factors or (1,) * axes,
  )


def shape(medium, config, prompt="", factors=None, **requested):
  found = components(medium, config, factors)
  (grid,) = request.make_grids(found, [prompt], requested, [None])
  return grid.shape


def test_a_rule_reads_sizes_off_prompts():
  prompts = ["3 1 4", "a handwritten seven", "3 1 / 4 1", "", "hello"]
  found = [shape(IMAGE, DIGITS, prompt) for prompt in prompts]
  assert found == [(8, 24), (8, 8), (16, 16), (8, 8), (8, 8)]
  assert shape(IMAGE, DIGITS, "7", height=16) == (16, 8)
  by_rule = components(IMAGE, DIGITS)
  assert request.natural_grid(by_rule, "3 1").shape == (8, 16)
  fixed = components(IMAGE, SizeConfig((8, 8)))
  assert request.natural_grid(fixed, "3 1") is None


def test_a_codec_divides_sizes_along_each_axis():
  config = SizeConfig((2, 8, 8))
  assert shape(VIDEO, config) == (2, 8, 8)
  found = shape(VIDEO, config, factors=(4, 8, 8), num_frames=8, width=64)
  assert found == (2, 8, 8)


def test_seconds_become_whole_latents():
  assert shape(AUDIO, LENGTHS) == (312,)
  for seconds, length in ((1, 32), (0.96, 30), (1e-3, 1), ("2.5", 79)):
    assert shape(AUDIO, LENGTHS, audio_length_in_s=seconds) == (length,)
  found = AUDIO.sizes((32, 4), 32.0)
  assert found == {"audio_length_in_s": 1.0}


@pytest.mark.parametrize(
  ("medium", "config", "requested", "message"),
  [
    (
      IMAGE,
      SizeConfig((8, 8)),
      dict(height=30, factors=(8, 8)),
      r"height = 30 is not a positive multiple of 16 \(8 pixels .* 16 or 32",
    ),
    (IMAGE, SizeConfig((8, 8)), dict(width=1), "width = 1 .*nearest .*: 2$"),
    (IMAGE, SizeConfig((8, 8)), dict(width=0), "width = 0"),
    (IMAGE, SizeConfig((8, 8)), dict(height=8.5), "8.5: must be a whole num"),
    (IMAGE, SizeConfig((8, 8)), dict(height=float("nan")), "height = nan"),
    (IMAGE, SizeConfig((8, 8)), dict(height="tall"), "height = 'tall'"),
    (
      IMAGE,
      DIGITS,
      dict(height=8, width=4096),
      "height=8, width=4096 takes 8192 tokens; the largest row holds 64",
    ),
    (IMAGE, DIGITS, dict(width=4 * 10**9), "the largest row holds 64"),
    (
      IMAGE,
      DIGITS,
      dict(prompt="1 2 3 4 5 / 1 / 2 / 3 / 4"),
      "the size of '1 2 3 4 5 / 1 / 2 / 3 / 4' takes",
    ),
    (VIDEO, SizeConfig((2, 8, 8)), dict(num_frames=0), "num_frames = 0"),
    (AUDIO, LENGTHS, dict(audio_length_in_s=-1), "must be positive seconds"),
    (AUDIO, LENGTHS, dict(audio_length_in_s="long"), "audio_length_in_s = 'lo"),
    (
      AUDIO,
      SizeConfig((312,)),
      dict(audio_length_in_s=1),
      r"how many latents a second has; set config\.sizes\.rate",
    ),
  ],
)
def test_sizes_that_cannot_be_generated(medium, config, requested, message):
  with pytest.raises(ValueError, match=message):
    shape(medium, config, **requested)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (dict(default=()), r"default = \(\): must be positive"),
    (dict(default=(0, 8)), r"default = \(0, 8\)"),
    (dict(rule="fixd"), "did you mean 'fixed'"),
    (dict(ladder=((1, 2),)), r"each budget is \(tokens, words, samples\)"),
    (dict(ladder=((8, 2, 1), (4, 2, 1))), "must rise"),
    (dict(rows=0), "rows = 0"),
    (dict(rate=-1.0), "rate = -1"),
  ],
)
def test_configs_that_are_no_sizes(values, message):
  with pytest.raises(ValueError, match=message):
    SizeConfig(**dict(default=(8, 8)) | values)


def test_trained_sizes_are_positive():
  for side, tokens in ((0, 4096), (128, 1)):
    with pytest.raises(ValueError, match=f"side = {side} and tokens"):
      TrainedSize(side, tokens)
