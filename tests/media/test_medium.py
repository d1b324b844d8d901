"""Media: their axes, from requested sizes to latents and back."""

import numpy as np
import pytest

from lumina_jax import media
from lumina_jax.media import AUDIO, IMAGE, MEDIA, VIDEO
from lumina_jax.media.medium import Axis

PIXELS, FRAMES, SECONDS = (
  Axis("height", "pixels", "Height."),
  Axis("num_frames", "frames", "Frames."),
  Axis("audio_length_in_s", "seconds", "Length."),
)


def test_media_are_found_by_name():
  assert list(MEDIA) == ["image", "video", "audio"]
  assert media.find("audio") is AUDIO
  with pytest.raises(ValueError, match="unknown medium 'vidio'; did you mean"):
    media.find("vidio")


def test_media_differ_in_what_callers_write():
  """Arguments, attributes and flags of two media never mean two things."""
  for field in ("name", "output", "per_prompt"):
    assert len({getattr(m, field) for m in MEDIA.values()}) == len(MEDIA)
  axes = [axis for medium in MEDIA.values() for axis in medium.axes]
  units = {axis.argument: axis.unit for axis in axes}
  assert all(units[axis.argument] == axis.unit for axis in axes)
  assert all(axis.help.endswith(".") for axis in axes)


@pytest.mark.parametrize(
  ("axis", "value", "factor", "patch", "rate", "extent"),
  [
    (PIXELS, 64, 8, 2, 0, 8),
    (PIXELS, "64", 8, 2, 0, 8),
    (PIXELS, np.float32(64), 1, 4, 0, 64),
    (FRAMES, 16, 4, 1, 0, 4),
    (SECONDS, 2, 1, 1, 31.25, 63),
    (SECONDS, 0.001, 1, 4, 31.25, 4),
    # 1.28 seconds are 40 latents, whatever float32 makes of them.
    (SECONDS, np.float32(1.28), 1, 1, 31.25, 40),
    (SECONDS, 1.0, 1, 16, 31.25, 32),
  ],
)
def test_sizes_become_latents(axis, value, factor, patch, rate, extent):
  assert axis.extent(value, factor, patch, rate) == extent


@pytest.mark.parametrize(
  ("axis", "value", "message"),
  [
    (
      PIXELS,
      40,
      r"height = 40 .* multiple of 16 \(8 pixels per latent times a",
    ),
    (PIXELS, 40, "the nearest that is: 32 or 48"),
    (PIXELS, 0, "height = 0 is not a positive multiple .*: 16$"),
    (PIXELS, -16, "height = -16 .* the nearest that is: 16$"),
    (PIXELS, True, "height = True: must be a whole number"),
    (PIXELS, 8.5, r"height = 8\.5: must be a whole number"),
    (PIXELS, "tall", "height = 'tall': must be a whole number"),
    (PIXELS, [8], r"height = \[8\]"),
    (PIXELS, float("inf"), "height = inf"),
    (FRAMES, 3, r"num_frames = 3 .*\(8 frames per latent"),
    (SECONDS, 0, "audio_length_in_s = 0: must be positive seconds"),
    (SECONDS, -1.0, r"audio_length_in_s = -1\.0"),
    (SECONDS, float("nan"), "audio_length_in_s = nan"),
    (SECONDS, "long", "audio_length_in_s = 'long'"),
  ],
)
def test_sizes_that_cannot_be_generated(axis, value, message):
  with pytest.raises(ValueError, match=message):
    axis.extent(value, 8, 2, rate=31.25)


def test_the_shape_of_a_sample():
  shape = VIDEO.shape((None, 128, None), (4, 32, 32), (1, 8, 8), (1, 2, 2), 0.0)
  assert shape == (4, 16, 32)
  message = r"audio_length_in_s = 1: .* set config\.sizes\.rate"
  with pytest.raises(ValueError, match=message):
    AUDIO.shape((1,), (312,), (1,), (1,), 0.0)


def test_sizes_of_a_sample_by_argument():
  assert IMAGE.sizes((8, 24, 3), 0.0) == {"height": 8, "width": 24}
  found = VIDEO.sizes((2, 8, 24, 3), 0.0)
  assert found == {"num_frames": 2, "height": 8, "width": 24}
  assert AUDIO.sizes((40, 20), 31.25) == {"audio_length_in_s": 1.28}
  # Without a rate, in latents.
  assert AUDIO.sizes((40, 20), 0.0) == {"audio_length_in_s": 40}
