"""What callers bring: pictures, lists of latents, noise levels."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from support.configs import randomised, small_config

from lumina_jax.media import image as image_file
from lumina_jax.sampling import source_image
from lumina_jax.sampling import times as time_grid

SHADES = np.arange(256, dtype=np.uint8).reshape(8, 32)
CALL = dict(num_inference_steps=1, output_type="latent")


def test_what_a_call_reads_as_a_picture():
  """Arrays in bytes and in fractions are the same as Pillow's."""
  expected = image_file.pixels(Image.fromarray(SHADES), 1)
  for image in (
    SHADES,
    SHADES[..., None],
    SHADES / 255,
    Image.fromarray(SHADES),
  ):
    for given in (image, [image]):
      one, two = source_image.images(given, 2, 1)
      np.testing.assert_allclose(one, expected, atol=1e-6)
      np.testing.assert_array_equal(one, two)
  both = source_image.images(np.stack([SHADES, 255 - SHADES])[..., None], 2, 1)
  np.testing.assert_allclose(both[1], -expected, atol=1e-6)


class Tensor:
  """What is asked of torch's: numpy cannot read those in bfloat16."""

  def __init__(self, values, dtype):
    self.values, self.dtype = values, f"torch.{dtype}"
    self.ndim = values.ndim

  def detach(self):
    return self

  float = cpu = detach

  def numpy(self):
    return self.values.astype(np.float32)


def test_tensors_are_read_by_their_own_type():
  expected = image_file.pixels(Image.fromarray(SHADES), 1)
  for tensor in (Tensor(SHADES, "uint8"), Tensor(SHADES / 255, "bfloat16")):
    np.testing.assert_allclose(
      source_image.images(tensor, 1, 1)[0], expected, atol=1e-6
    )


@pytest.mark.parametrize(
  ("image", "message"),
  [
    ("cat.png", r"image = 'cat\.png': open it first, e\.g\. by PIL\.Image\.op"),
    (["cat.png"], r"image = 'cat\.png': open it first"),
    (pathlib.Path("cat.png"), r"Path\('cat\.png'\): open it first"),
    (b"\x89PNG", "image = bytes: open it first"),
    ([], "0 pictures for 1 prompts; give one, or one for each"),
    ([[0.0, 1.0], [1.0, 0.0]], "type list: pass a picture of PIL or an array"),
    ((0.5, 0.5), "type float: pass a picture"),
    (0.5, "type float"),
    ([None], "type NoneType"),
    ({}, "type dict"),
    (np.zeros((0, 8, 1)), r"shape \(0, 8, 1\): no pixels"),
    (np.zeros(8), r"shape \(8,\): this pipeline takes \(H, W, 1\)"),
    (SHADES.astype(int), "from 0 to 255: bytes, or numbers from 0 to 1"),
  ],
)
def test_what_is_no_picture(image, message):
  with pytest.raises(ValueError, match=message):
    source_image.images(image, 1, 1)


@pytest.fixture(scope="module")
def pipe():
  return randomised(small_config())


def test_lists_of_latents_of_unlike_sizes(pipe):
  """Arrays of unlike sizes are no array, which numpy says loudly."""
  prompts, shapes = ["3 1", "7"], [(8, 16, 1), (8, 8, 1)]
  rng = np.random.default_rng(0)
  given = [rng.standard_normal(shape, np.float32) for shape in shapes]
  drawn = pipe(prompts, **CALL, latents=given).images
  assert [x.shape for x in drawn] == shapes
  for prompt, latents, found in zip(prompts, given, drawn, strict=True):
    (alone,) = pipe(prompt, **CALL, latents=[latents]).images
    np.testing.assert_allclose(found, alone, atol=1e-4)
  with pytest.raises(ValueError, match=r"latents\[0\] has shape \(8, 8, 1\)"):
    pipe(prompts, **CALL, latents=given[::-1])


def test_callbacks_that_hand_back_latents_of_unlike_sizes(pipe):
  prompts = ["3 1", "7"]
  expected = pipe(prompts, **CALL).images
  same = pipe(prompts, **CALL, callback=lambda step, t, x: x).images
  changed = pipe(
    prompts,
    **CALL,
    callback_on_step_end=lambda pipe, step, t, values: {
      "latents": [x + 1 for x in values["latents"]]
    },
  ).images
  for one, other, moved in zip(expected, same, changed, strict=True):
    np.testing.assert_allclose(other, one, atol=1e-4)
    np.testing.assert_allclose(moved, one + 1, atol=1e-4)


@pytest.mark.parametrize(
  ("sigmas", "message"),
  [
    (0.5, r"sigmas = 0\.5: noise levels, as \[1\.0"),
    ("karras", "sigmas = 'karras': .* what has a name is a schedule"),
    (["karras"], "sigmas = 'karras'"),
    (np.ones((2, 2)), "sigmas = array"),
    ([[1.0], [0.5, 0.2]], r"sigmas = \[1\.0\]"),
    ({1.0, 0.5}, "sigmas = {"),
  ],
)
def test_what_is_no_list_of_noise_levels(sigmas, message):
  with pytest.raises(ValueError, match=message):
    time_grid.choose(small_config().sampling, sigmas=sigmas)


def test_kinds_of_lists_of_noise_levels():
  sampling, levels = small_config().sampling, [1.0, 0.5]
  for given in (levels, tuple(levels), np.asarray(levels), ["1", "0.5"]):
    found = time_grid.choose(sampling, sigmas=given).times
    np.testing.assert_array_equal(found, np.float32([0, 0.5, 1]))
