"""LuminaPipeline with small random weights: what a call promises."""

import jax
import numpy as np
import pytest
from PIL import Image
from support.configs import randomised, small_config

from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import program as sampler


def random_pipeline(variant="next", **changes):
  return randomised(small_config(variant, **changes))


@pytest.fixture(
  scope="module",
  params=["next", pytest.param("flag", marks=pytest.mark.slow)],
)
def pipe(request):
  return random_pipeline(request.param)


def differ(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max()


def test_size_follows_the_prompt(pipe):
  prompts = ["3 1 4", "a handwritten seven", "3 1 / 4 1", "", "hello"]
  images = pipe(prompts).images
  assert all(isinstance(image, Image.Image) for image in images)
  sizes = [image.size for image in images]
  assert sizes == [(24, 8), (8, 8), (16, 16), (8, 8), (8, 8)]


def test_size_can_be_given_once_or_for_each(pipe):
  both = pipe(["1", "2"], height=16, width=[8, 24], output_type="uint8").images
  assert [image.shape for image in both] == [(16, 8, 1), (16, 24, 1)]
  assert all(image.dtype == np.uint8 for image in both)


def test_picture_is_the_same_whatever_else_is_in_the_call(pipe):
  alone = pipe("3 1 4", seed=3, output_type="uint8").images[0]
  crowd = ["7", "1 / 2", "3 1 4", "nine nine", "5 6 / 7 8", "0"] * 2
  seeds = [3 if prompt == "3 1 4" else i for i, prompt in enumerate(crowd)]
  among = pipe(crowd, seed=seeds, output_type="uint8").images
  for i in (2, 8):
    assert differ(among[i], alone) <= 1


def test_seed_prompt_number_and_guidance_each_matter(pipe):
  def make(*args, **kwargs):
    return pipe(*args, **kwargs, output_type="uint8").images

  plain = make("7", seed=0)[0]
  assert differ(make("7", seed=1)[0], plain) > 1
  assert differ(make("4", seed=0)[0], plain) > 1
  assert differ(make("7", seed=0, guidance_scale=4.0)[0], plain) > 1
  assert differ(make("7", seed=0, negative_prompt="9")[0], plain) > 1
  two = make("7", seed=0, num_images_per_prompt=2)
  assert differ(two[0], plain) <= 1 < differ(two[1], plain)


def test_guidance_one_is_plain_sampling(pipe):
  """The program without a second branch agrees with the one that has it."""
  alone = pipe("7", guidance_scale=1.0, output_type="uint8").images[0]
  beside = pipe(
    ["7", "4"], guidance_scale=[1.0, 3.0], output_type="uint8"
  ).images
  assert differ(alone, beside[0]) <= 1


def test_one_program_for_each_rung_and_nothing_else_compiles():
  pipe = random_pipeline()
  sampler.sample.clear_cache()
  before = sampler.sample._cache_size()
  pipe(["3 1 4", "7", "3 1 / 4 1"])
  assert sampler.sample._cache_size() == before + 1
  pipe("5")
  pipe(["1 / 2"] * 7, seed=9, guidance_scale=3.5, shift=2.0)
  pipe("8", height=24, width=8, negative_prompt="3")
  assert sampler.sample._cache_size() == before + 1
  pipe("8", height=8, width=160)
  assert sampler.sample._cache_size() == before + 2


def test_larger_than_any_trained_canvas(pipe):
  image = pipe("1 2 3 / 4 5 6 / 7 8 9").images[0]
  assert image.size == (24, 24)


def test_many_pictures_run_in_batches_with_progress(pipe):
  seen = []
  images = pipe(
    ["5"] * 3,
    num_images_per_prompt=70,
    num_inference_steps=1,
    progress=lambda done, total: seen.append((done, total)),
  ).images
  assert len(images) == 210 and seen[-1] == (210, 210) and len(seen) > 1


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (dict(prompt=[]), "no prompt"),
    (dict(prompt="7", height=9), "height=9.*multiple of the patch size"),
    (dict(prompt="7", height=8, width=4096), "largest rung"),
    (dict(prompt=["7", "8"], seed=[1]), "seed has 1 values for 2 prompts"),
    (dict(prompt="7", solver="midpiont"), "did you mean 'midpoint'"),
    (dict(prompt="7", output_type="jpeg"), "output_type 'jpeg'"),
    (dict(prompt="7", num_inference_steps=0), "must be positive"),
    (dict(prompt="7", shift=0.0), "shift = 0.0 must be positive"),
    (dict(prompt="7", shift=float("inf")), "shift = inf"),
    (dict(prompt=None), "prompt None"),
    (dict(prompt="7", seed=2**32), "seed = 4294967296"),
    (dict(prompt="7", seed=-1), "seed = -1"),
    (dict(prompt="7", height=8.5), "whole pixels"),
    (dict(prompt="7", width=4 * 10**9), "largest rung"),
    (dict(prompt="7", num_images_per_prompt=0), "a positive whole"),
  ],
)
def test_wrong_calls_say_what_and_how(pipe, kwargs, message):
  with pytest.raises(ValueError, match=message):
    pipe(**kwargs)


def test_long_prompt_is_cut_off_with_a_warning(pipe, caplog):
  assert len(pipe("seven " * 50, height=8, width=8).images) == 1
  assert "prompt cut off" in caplog.text


def test_pictures_that_are_not_finite_are_refused():
  pipe = random_pipeline()
  pipe.params["backbone"]["final"]["bias"] = np.full(
    pipe.params["backbone"]["final"]["bias"].shape, np.nan, np.float32
  )
  with pytest.raises(FloatingPointError, match=r"picture 0 .*: 64 of 64 v"):
    pipe("7")


def test_export_travels_and_is_checked(tmp_path):
  pipe = random_pipeline()
  pipe.save_pretrained(tmp_path)
  again = LuminaPipeline.from_pretrained(tmp_path)
  assert again.network == pipe.network and again.sampling == pipe.sampling
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8),
    again.params,
    pipe.params,
  )
  weights = tmp_path / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="cannot be read"):
    LuminaPipeline.from_pretrained(tmp_path)
  weights.unlink()
  with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
    LuminaPipeline.from_pretrained(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
  random_pipeline().save_pretrained(tmp_path)
  config = tmp_path / "config.json"
  config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
  with pytest.raises(ValueError, match=r"expected \(3, .*found \(2, "):
    LuminaPipeline.from_pretrained(tmp_path)


def test_shipped_weights_draw_the_prompt():
  """A digit in its caption's place, read by a classifier of real digits."""
  from data_pipelines.digits import split
  from lumina_jax.evaluation import digits as judging

  pipe = LuminaPipeline.from_pretrained()
  reader = judging.DigitClassifier(split(0.2)[0])
  prompts = [str(d) for d in range(10)] * 3
  images = pipe(prompts, seed=list(range(30)), output_type="uint8").images
  digits = judging.split_canvases(images, 1, 1)
  assert reader.accuracy(digits, np.arange(30) % 10) >= 0.9
