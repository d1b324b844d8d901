"""Image to image through an autoencoder: what it begins with, what it gives."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support import tiny_pipeline as tiny

from lumina_jax import LuminaPipeline
from lumina_jax.encoders.autoencoder import Autoencoder

# Up to half of two steps is one step.
CALL = dict(num_inference_steps=2, solver="euler", shift=1.0, output_type="np")
SIDES = dict(height=16, width=24)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
  folder = tiny.write_diffusers(tmp_path_factory.mktemp("hub") / "peer")
  pipe = LuminaPipeline.from_pretrained(folder, dtype="float32")
  # Latents far above the noise, as no random autoencoder would make them.
  cfg = dataclasses.replace(pipe.vae.cfg, scaling_factor=10.0)
  pipe.vae = Autoencoder(cfg, pipe.vae.params)
  return pipe


def picture(seed=0, sides=(16, 24)):
  return np.random.default_rng(seed).uniform(size=(*sides, 3)).astype("f4")


def draw(pipe, prompt=tiny.PROMPT, **call):
  return np.stack(pipe(prompt, **CALL | call).images)


def through(pipe, image):
  """What the autoencoder alone makes of a picture."""
  decoded = np.asarray(pipe.vae.decode(pipe.vae.encode(image * 2 - 1)))
  return (np.clip(decoded, -1, 1) + 1) / 2


def away(a, b):
  return np.sqrt(np.mean((a - b) ** 2))


def test_little_strength_gives_the_picture_back(pipe):
  image = picture()
  expected = through(pipe, image)
  found = draw(pipe, image=image, strength=0.05)
  assert found.shape == (1, 16, 24, 3)
  # A share of how far pictures are apart that have nothing in common.
  apart = away(draw(pipe, **SIDES)[0], expected)
  assert away(found[0], expected) < 0.2 * apart
  other = through(pipe, picture(1))
  assert away(found[0], other) > 0.5 * apart


def test_more_strength_leads_further_away(pipe):
  image = picture()
  expected = through(pipe, image)
  latents = np.asarray(pipe.vae.encode(image * 2 - 1))
  pixels, inside = [], []
  for strength in (0.05, 0.1, 0.2, 0.4, 0.6, 1.0):
    call = dict(image=image, strength=strength)
    pixels.append(away(draw(pipe, **call)[0], expected))
    inside.append(away(draw(pipe, **call, output_type="latent")[0], latents))
  assert inside == sorted(inside)
  assert pixels == sorted(pixels)


def test_full_strength_is_text_to_image(pipe):
  free = draw(pipe, **SIDES, seed=3)
  for seed in (0, 1):
    found = draw(pipe, image=picture(seed), strength=1.0, seed=3)
    np.testing.assert_allclose(found, free, atol=1e-5)


def test_several_pictures_of_a_prompt(pipe):
  """Each has noise of its own, and is what it is beside others."""
  image, call = picture(), dict(strength=0.4)
  three = draw(pipe, image=image, num_images_per_prompt=3, **call)
  assert min(away(three[0], three[1]), away(three[1], three[2])) > 1e-3
  np.testing.assert_allclose(
    three[0], draw(pipe, image=image, **call)[0], atol=1e-4
  )
  prompts, images = [tiny.PROMPT, "fox"], [image, picture(1)]
  four = draw(pipe, prompts, image=images, num_images_per_prompt=2, **call)
  assert four.shape == (4, 16, 24, 3)
  np.testing.assert_allclose(four[:2], three[:2], atol=1e-4)
  alone = draw(pipe, "fox", image=images[1], **call)
  np.testing.assert_allclose(four[2], alone[0], atol=1e-4)


def test_one_picture_for_several_prompts(pipe):
  image, prompts = picture(), [tiny.PROMPT, "fox"]
  both = draw(pipe, prompts, image=image, strength=0.4)
  for prompt, found in zip(prompts, both, strict=True):
    alone = draw(pipe, prompt, image=image, strength=0.4)
    np.testing.assert_allclose(found, alone[0], atol=1e-4)


def test_pictures_of_unlike_sizes(pipe):
  wide, tall = picture(), picture(1, (24, 8))
  found = pipe(["fox", "cat"], **CALL, image=[wide, tall], strength=0.05).images
  assert [x.shape for x in found] == [(16, 24, 3), (24, 8, 3)]
  for one, image in zip(found, (wide, tall), strict=True):
    assert away(one, through(pipe, image)) < 0.03


def test_grey_and_transparent_pictures_become_colours(pipe):
  grey = (picture()[..., 0] * 255).astype(np.uint8)
  colours = np.repeat(grey[..., None], 3, axis=-1)
  clear = np.full((16, 24, 1), 255, np.uint8)
  expected = draw(pipe, image=colours, strength=0.4)
  for image in (grey, np.concatenate([colours, clear], axis=-1)):
    found = draw(pipe, image=Image.fromarray(image), strength=0.4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      dict(image=picture(sides=(18, 24))),
      r"height=18, width=24: height is no multiple of 4 .* are 16 or 20",
    ),
    (dict(image=picture(sides=(16, 22))), "width is no multiple of 4"),
    (dict(image=picture(), height=32), "height=32, but image has 16: resize"),
    (dict(image=picture(), width=16), "width=16, but image has 24: resize"),
    (dict(image=picture()[..., :1]), r"\(16, 24, 1\): .* \(H, W, 3\)"),
    (dict(image=picture()[..., 0]), r"\(16, 24, 1\): .* \(H, W, 3\)"),
    (dict(image=np.zeros((8, 12, 4), "f4")), r"\(8, 12, 4\): .* \(H, W, 3\)"),
    (dict(image="cat.png"), "open it first"),
    (dict(image=[picture()] * 2), "2 pictures for 1 prompts"),
    (dict(strength=0.5), "strength = 0.5 without image"),
  ],
)
def test_wrong_pictures(pipe, call, message):
  with pytest.raises(ValueError, match=message):
    draw(pipe, **call)


def test_latents_without_an_autoencoder_begin_with_no_picture(pipe):
  alone = LuminaPipeline(
    pipe.network, pipe.params, pipe.sampling, text_encoder=pipe.text_encoder
  )
  for image in (Image.new("RGB", (8, 8)), np.zeros((8, 8, 4), "f4")):
    with pytest.raises(ValueError, match=r"image: .* 4 channels.* with a vae"):
      draw(alone, image=image)
