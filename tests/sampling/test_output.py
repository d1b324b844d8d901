"""What a call returns."""

import numpy as np
import pytest

from lumina_jax.media import AUDIO, IMAGE, VIDEO
from lumina_jax.sampling.output import Output, check_finite, converter

LEVELS = np.linspace(-1.2, 1.2, 48, dtype=np.float32).reshape(4, 4, 3)


def convert(medium, output_type, sample=LEVELS, decodes=False):
  name, function = converter(medium, output_type, decodes)
  return name, function(sample)


def test_images_in_every_type():
  clipped = np.clip(LEVELS, -1, 1)
  name, u8 = convert(IMAGE, "uint8")
  np.testing.assert_array_equal(u8, np.round((clipped + 1) * 127.5))
  assert u8.dtype == np.uint8
  _, unit = convert(IMAGE, "np")
  np.testing.assert_allclose(unit, (clipped + 1) / 2, atol=1e-6)
  name, pil = convert(IMAGE, None)
  assert name == "pil"
  np.testing.assert_array_equal(np.asarray(pil), u8)
  for raw in ("raw", "latent"):
    np.testing.assert_array_equal(convert(IMAGE, raw)[1], LEVELS)


def test_a_video_is_a_list_of_frames_and_audio_its_latents():
  name, frames = convert(VIDEO, None, LEVELS[None])
  assert name == "pil" and [frame.size for frame in frames] == [(4, 4)]
  assert convert(AUDIO, None, LEVELS[0])[0] == "latent"


@pytest.mark.parametrize(
  ("medium", "name", "message"),
  [
    (IMAGE, "jpeg", r"output_type 'jpeg'.* pil, np, uint8, latent, raw"),
    (IMAGE, "pill", "did you mean 'pil'"),
    (IMAGE, "pt", r"torch\.from_numpy"),
    (AUDIO, "np", "no codec decodes audio yet; use one of: latent, raw"),
  ],
)
def test_unknown_types_are_refused(medium, name, message):
  with pytest.raises(ValueError, match=message):
    converter(medium, name, decodes=False)


def test_samples_have_the_name_of_their_medium():
  output = Output([1, 2], VIDEO, [4, 4])
  assert output.frames == output.samples == output[0] == [1, 2]
  assert "frames" in dir(output) and not hasattr(output, "pictures")
  with pytest.raises(AttributeError, match=r"generates videos: use \.frames"):
    output.images  # noqa: B018


def test_values_that_are_not_finite_are_refused_with_advice():
  broken = np.where(LEVELS > 1, np.nan, LEVELS)
  message = r"sample 3: \d of 48 values are not finite; the weights"
  with pytest.raises(FloatingPointError, match=message):
    check_finite(broken, "sample 3", "float32")
  with pytest.raises(FloatingPointError, match='load it with dtype="float32"'):
    check_finite(broken, "sample 3", "bfloat16")
  check_finite(LEVELS, "sample 3", "float32")
