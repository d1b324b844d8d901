"""Image to image: strength, sizes and kinds of initial images."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support import tiny_pipeline as tiny
from support.pipelines import distance, replaced

from lumina_jax.encoders.autoencoder import Autoencoder

# Up to half of two steps is one step.
CALL = dict(num_inference_steps=2, solver="euler", shift=1.0, output_type="np")
SIZES = dict(height=16, width=24)


@pytest.fixture(scope="module")
def pipe(latents):
  # Latents far above the noise, as no random autoencoder would make them.
  cfg = dataclasses.replace(latents.vae.cfg, scaling_factor=10.0)
  return replaced(latents, codec=Autoencoder(cfg, latents.vae.params))


def image(seed=0, shape=(16, 24, 3)):
  return np.random.default_rng(seed).uniform(size=shape).astype("f4")


def generate(pipe, prompt=tiny.PROMPT, **call):
  return np.stack(pipe(prompt, **CALL | call).images)


def reconstructed(pipe, image):
  """An image, encoded and decoded by the autoencoder."""
  decoded = np.asarray(pipe.vae.decode(pipe.vae.encode(image * 2 - 1)))
  return (np.clip(decoded, -1, 1) + 1) / 2


def rms(a, b):
  return np.sqrt(np.mean((a - b) ** 2))


def test_little_strength_keeps_the_image(pipe):
  expected = reconstructed(pipe, image())
  found = generate(pipe, image=image(), strength=0.05)
  assert found.shape == (1, 16, 24, 3)
  # A fraction of the distance of images that have nothing in common.
  unrelated = rms(generate(pipe, **SIZES)[0], expected)
  assert rms(found[0], expected) < 0.2 * unrelated
  other = reconstructed(pipe, image(1))
  assert rms(found[0], other) > 0.5 * unrelated


def test_more_strength_leads_further_away(pipe):
  encoded = np.asarray(pipe.vae.encode(image() * 2 - 1))
  found = [
    generate(pipe, image=image(), strength=s, output_type="latent")[0]
    for s in (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
  ]
  distances = [rms(x, encoded) for x in found]
  assert distances == sorted(distances)


def test_full_strength_is_text_to_image(pipe):
  free = generate(pipe, **SIZES, seed=3)
  for seed in (0, 1):
    found = generate(pipe, image=image(seed), strength=1.0, seed=3)
    np.testing.assert_allclose(found, free, atol=1e-5)


def test_several_samples_of_an_image(pipe):
  """Each has noise of its own, and does not depend on the others."""
  call = dict(strength=0.4, output_type="latent")
  three = generate(pipe, image=image(), num_images_per_prompt=3, **call)
  assert min(rms(three[0], three[1]), rms(three[1], three[2])) > 1e-3
  (alone,) = generate(pipe, image=image(), **call)
  np.testing.assert_allclose(three[0], alone, atol=1e-4)
  prompts, images = [tiny.PROMPT, "fox"], [image(), image(1)]
  four = generate(pipe, prompts, image=images, num_images_per_prompt=2, **call)
  np.testing.assert_allclose(four[:2], three[:2], atol=1e-4)
  (alone,) = generate(pipe, "fox", image=images[1], **call)
  np.testing.assert_allclose(four[2], alone, atol=1e-4)
  both = generate(pipe, prompts, image=image(), **call)
  np.testing.assert_allclose(both[0], three[0], atol=1e-4)
  assert distance(both[1], alone) > 1e-3


def test_images_of_different_sizes(pipe):
  wide, tall = image(), image(1, (24, 8, 3))
  call = dict(CALL, image=[wide, tall], strength=0.05)
  found = pipe(["fox", "cat"], **call).images
  assert [x.shape for x in found] == [(16, 24, 3), (24, 8, 3)]
  for one, original in zip(found, (wide, tall), strict=True):
    assert rms(one, reconstructed(pipe, original)) < 0.03


def test_grey_and_transparent_images_become_colours(pipe):
  grey = (image()[..., 0] * 255).astype(np.uint8)
  colours = np.repeat(grey[..., None], 3, axis=-1)
  opaque = np.full((16, 24, 1), 255, np.uint8)
  expected = generate(pipe, image=colours, strength=0.4)
  for pixels in (grey, np.concatenate([colours, opaque], axis=-1)):
    found = generate(pipe, image=Image.fromarray(pixels), strength=0.4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_strength_is_the_share_of_the_steps_that_run(pixels):
  source = image(shape=(8, 16, 1))
  call = dict(num_inference_steps=4, solver="euler", output_type="np", seed=3)
  for strength, steps in ((0.4, 2), (1.0, 4)):
    out = pixels("3 1", **call, image=source, strength=strength)
    assert out.evaluations == [steps]
  free = pixels("3 1", **call).images[0]
  np.testing.assert_allclose(out.images[0], free, atol=1e-5)
  # The size is the image's, whatever the prompt names.
  seven = pixels("7", **call, image=source, strength=1.0).images[0]
  assert seven.shape == (8, 16, 1)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      dict(image=image(shape=(18, 24, 3))),
      r"height = 18 is not a positive multiple of 4 .*: 16 or 20",
    ),
    (dict(image=image(shape=(16, 22, 3))), "width = 22 is not"),
    (dict(image=image(), height=32), "height=32, but image has 16: resize"),
    (dict(image=image(), width=16), "width=16, but image has 24: resize"),
    (dict(image=image()[..., :1]), r"\(16, 24, 1\): .* \(H, W, 3\)"),
    (dict(image="cat.png"), "open it first"),
    (dict(image=[image()] * 2), "image has 2 values for 1 prompts"),
    (dict(image=[]), "image has 0 values for 1 prompts"),
    (dict(strength=0.5), r"strength = 0\.5 has no effect without image"),
  ],
)
def test_images_that_do_not_fit_are_named(pipe, call, message):
  with pytest.raises(ValueError, match=message):
    generate(pipe, **call)


def test_latents_without_an_autoencoder_start_from_no_image(pipe):
  alone = replaced(pipe, codec=None)
  for values in (Image.new("RGB", (8, 8)), np.zeros((8, 8, 4), "f4")):
    with pytest.raises(ValueError, match=r"image: .* 4 channels.* with a vae"):
      generate(alone, image=values)
