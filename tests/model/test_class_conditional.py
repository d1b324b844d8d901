"""LuminaPipeline of a class-conditional network."""

import numpy as np
import pytest
from support.configs import randomised, tiny_config

from lumina_jax.pipeline import LuminaPipeline


@pytest.fixture(scope="module")
def pipe():
  return randomised(tiny_config("imagenet"))


@pytest.fixture(scope="module")
def generate(pipe):
  def generate(*args, **kwargs):
    return pipe(*args, **kwargs, output_type="latent").images

  return generate


def test_latents_are_not_clipped(pipe, generate):
  (latents,) = generate("7")
  assert latents.shape == (8, 8, 4) and latents.dtype == np.float32
  (pixels,) = pipe("7", output_type="uint8").images
  shown = np.round((np.clip(latents, -1, 1) + 1) * 127.5)
  np.testing.assert_array_equal(pixels, shown.astype(np.uint8))
  assert np.abs(latents).max() > 1  # Not clipped.
  (image,) = pipe("7").images
  np.testing.assert_array_equal(np.asarray(image), pixels[..., :3])


def test_label_seed_and_guidance_matter(generate):
  plain = generate("7", seed=3, guidance_scale=1.0)[0]
  crowd = generate(["1", "7", ""] * 3, seed=3, guidance_scale=1.0)
  np.testing.assert_allclose(crowd[1], plain, atol=1e-4)
  np.testing.assert_allclose(crowd[7], plain, atol=1e-4)
  for other in (
    crowd[0],
    crowd[2],
    generate("7", seed=4, guidance_scale=1.0)[0],
  ):
    assert np.abs(other - plain).max() > 1e-2
  guided = generate("7", seed=3, guidance_scale=4.0)[0]
  assert np.abs(guided - plain).max() > 1e-2


def test_guidance_steers_away_from_the_null_class(generate):
  """v = v_0 + s (v_c - v_0), and with one step so is the outcome."""
  scale = [1.0, 1.0, 4.0, 4.0]
  null, plain, guided, from_null = generate(
    ["", "7", "7", ""], seed=3, guidance_scale=scale
  )
  expected = null + 4 * (plain - null)
  np.testing.assert_allclose(guided, expected, atol=1e-3, rtol=1e-3)
  np.testing.assert_allclose(from_null, null, atol=1e-4)
  away = generate("7", seed=3, negative_prompt="2", guidance_scale=4.0)[0]
  assert np.abs(away - guided).max() > 1e-2


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("word", ["cat", "-1", "10"])
def test_an_unknown_class_is_refused_with_the_range(pipe, field, word):
  with pytest.raises(ValueError, match=rf"'{word}': the classes .* 0 to 9"):
    pipe(**{"prompt": "7", field: word})


def test_export_has_no_text_encoder(pipe, generate, tmp_path):
  pipe.save_pretrained(tmp_path)
  again = LuminaPipeline.from_pretrained(tmp_path)
  assert again.network == pipe.network
  assert again.params.keys() == {"backbone"}
