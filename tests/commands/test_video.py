"""Videos at tiny size: samples, rows, sizes."""

import dataclasses

import numpy as np
import pytest
from support.configs import randomised, tiny_config

from lumina_jax.media import video
from lumina_jax.media.image import to_uint8
from lumina_jax.tokens import NEXTFRAME, NEXTLINE
from lumina_jax.training.data import make_batches

FRAMES, HEIGHT, WIDTH = 4, 6, 4  # Of configs/text_to_video.py:tiny.


@pytest.mark.parametrize("axes", [1, pytest.param(3, marks=pytest.mark.e2e)])
def test_frames_differ_and_other_samples_change_nothing(axes):
  """With Flag-DiT's positions and separators, and with Next-DiT's axes."""
  config = tiny_config("text_to_video")
  if axes == 3:
    model = dataclasses.replace(config.model, raster=False, separators=False)
    config = dataclasses.replace(config, model=model)
  assert config.model.position_axes == axes
  pipe = randomised(config)
  alone = pipe("pattern 7", output_type="latent").frames[0]
  assert alone.shape == (FRAMES, HEIGHT, WIDTH, 4)
  assert np.abs(np.diff(alone, axis=0)).max(axis=(1, 2, 3)).min() > 1e-3
  together = pipe(
    ["pattern 3", "pattern 7"], height=[4, HEIGHT], output_type="latent"
  ).frames
  assert together[0].shape == (FRAMES, 4, WIDTH, 4)
  np.testing.assert_allclose(together[1], alone, atol=2e-4)


def test_lines_and_frames_of_rows_end_with_separators():
  config = tiny_config("text_to_video")
  tokens, _ = make_batches(config).batch(0)
  sizes = {size[0] for size in config.data.sizes}
  for kinds, segments in zip(tokens.kinds, tokens.segments, strict=True):
    for sample in range(1, segments.max() + 1):
      inside = kinds[segments == sample]
      assert inside[-1] == NEXTFRAME and inside[-2] == NEXTLINE
      assert np.sum(inside == NEXTFRAME) in sizes


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    (dict(height=7), r"height = 7 is not a positive multiple of 2.*6 or 8"),
    (dict(num_frames=64), r"num_frames=64 takes 640 tokens; .* holds 168"),
    (dict(num_frames=0), r"num_frames = 0"),
  ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
  pipe = randomised(tiny_config("text_to_video"))
  with pytest.raises(ValueError, match=message):
    pipe.check("pattern 7", **sizes)


def test_a_strip_shows_the_frames_from_left_to_right():
  frames = np.linspace(-1, 1, 3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 1)
  image = np.asarray(video.strip(frames))
  assert image.shape == (2, 8)
  for number in range(3):
    expected = to_uint8(frames[number])[..., 0]
    start = 3 * number
    np.testing.assert_array_equal(image[:, start : start + 2], expected)
  assert (image[:, [2, 5]] == 255).all()  # A line between them.
