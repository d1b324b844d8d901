"""LuminaPipeline: what a call promises, whatever the medium."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from support.configs import randomised, small_config, tiny_config
from support.pipelines import distance

from lumina_jax.pipeline import LuminaPipeline

CALL = dict(output_type="uint8")


@pytest.fixture(
  scope="module", params=["next", pytest.param("flag", marks=pytest.mark.e2e)]
)
def pipe(request):
  return randomised(small_config(request.param))


def generate(pipe, *args, **call):
  return pipe(*args, **CALL | call).samples


def test_images_have_the_size_that_prompt_or_call_name(pipe):
  prompts = ["3 1 4", "a handwritten seven", "3 1 / 4 1", "", "hello"]
  images = pipe(prompts).images
  assert all(isinstance(image, Image.Image) for image in images)
  sizes = [image.size for image in images]
  assert sizes == [(24, 8), (8, 8), (16, 16), (8, 8), (8, 8)]
  both = generate(pipe, ["1", "2"], height=16, width=[8, 24])
  assert [image.shape for image in both] == [(16, 8, 1), (16, 24, 1)]
  # Larger than any trained canvas.
  assert pipe("1 2 3 / 4 5 6 / 7 8 9").images[0].size == (24, 24)


def test_a_sample_does_not_depend_on_the_others(pipe):
  (alone,) = generate(pipe, "3 1 4", seed=3)
  prompts = ["7", "1 / 2", "3 1 4", "nine nine", "5 6 / 7 8", "0"] * 2
  seeds = [3 if prompt == "3 1 4" else i for i, prompt in enumerate(prompts)]
  together = generate(pipe, prompts, seed=seeds)
  for i in (2, 8):
    assert distance(together[i], alone) <= 1


def test_seed_prompt_number_and_guidance_each_matter(pipe):
  (plain,) = generate(pipe, "7", seed=0)
  for prompt, call in (
    ("7", dict(seed=1)),
    ("4", {}),
    ("7", dict(guidance_scale=4.0)),
    ("7", dict(negative_prompt="9")),
  ):
    (other,) = generate(pipe, prompt, **dict(seed=0) | call)
    assert distance(other, plain) > 1
  two = generate(pipe, "7", seed=0, num_images_per_prompt=2)
  assert distance(two[0], plain) <= 1 < distance(two[1], plain)
  assert distance(generate(pipe, "7")[0], plain) == 0


def test_guidance_1_is_plain_sampling(pipe):
  """The program without a second branch agrees with the one that has it."""
  (alone,) = generate(pipe, "7", guidance_scale=1.0)
  beside = generate(pipe, ["7", "4"], guidance_scale=[1.0, 3.0])
  assert distance(alone, beside[0]) <= 1


def test_many_samples_run_in_batches_with_progress(pipe):
  seen = []
  images = pipe(
    ["5"] * 3,
    num_images_per_prompt=70,
    num_inference_steps=1,
    progress=lambda done, total: seen.append((done, total)),
  ).images
  assert len(images) == 210 and seen[-1] == (210, 210) and len(seen) > 1


def test_a_call_returns_what_a_tuple_would(pipe):
  out = pipe("7", **CALL)
  (images,) = pipe("7", **CALL, return_dict=False)
  np.testing.assert_array_equal(images[0], out.images[0])
  np.testing.assert_array_equal(out[0][0], out.images[0])


def test_a_seed_may_be_a_scalar_or_generator_of_any_library(pipe):
  import jax.numpy as jnp

  (expected,) = generate(pipe, "7", seed=3, guidance_scale=2.0)
  (found,) = generate(
    pipe, "7", seed=jnp.int32(3), guidance_scale=np.float32(2)
  )
  assert distance(found, expected) == 0
  two = generate(
    pipe, "7", generator=[8, 3], guidance_scale=2.0, num_images_per_prompt=2
  )
  assert distance(two[1], expected) == 0 < distance(two[0], expected)


def test_audio_has_the_length_that_a_call_names():
  pipe = randomised(tiny_config("text_to_audio"))
  long, short = pipe(
    ["pattern 7", "pattern 8"], audio_length_in_s=[1, 0.5]
  ).audios
  rate = pipe.components.sizes.rate
  assert (len(long), len(short)) == (np.ceil(rate), np.ceil(rate / 2))
  (alone,) = pipe("pattern 7", audio_length_in_s=1).audios
  np.testing.assert_allclose(alone, long, atol=1e-4)
  with pytest.raises(
    TypeError, match="generates audio, with audio_length_in_s"
  ):
    pipe("pattern 7", height=8)
  with pytest.raises(ValueError, match="audio, which cannot start from a"):
    pipe("pattern 7", image=np.zeros((8, 8, 3)))
  with pytest.raises(ValueError, match="no codec decodes audio yet"):
    pipe("pattern 7", output_type="np")


def test_a_video_is_a_list_of_frames():
  pipe = randomised(tiny_config("text_to_video"))
  (frames,) = pipe("pattern 7", num_frames=2, height=8, width=16).frames
  assert [frame.size for frame in frames] == [(16, 8)] * 2
  with pytest.raises(AttributeError, match=r"generates videos: use \.frames"):
    pipe("pattern 7", num_frames=2, height=8, width=16).images  # noqa: B018


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (dict(prompt=None), "prompt = None"),
    (dict(height=9), r"height = 9 .*: 8 or 12"),
    (dict(height=8, width=4096), "the largest row holds 160"),
    (dict(seed=[1, 2]), "seed has 2 values for 1 prompts"),
    (dict(solver="midpiont"), "did you mean 'midpoint'"),
    (dict(output_type="jpeg"), "output_type 'jpeg'"),
    (dict(num_inference_steps=0), "num_inference_steps = 0"),
    (dict(num_images_per_prompt=1.5), "num_images_per_prompt = 1.5: must be a"),
    (dict(latents=np.zeros((2, 8, 8, 1))), "latents has 2 rows for 1 samples"),
    (dict(compatibility="difusers"), "did you mean 'diffusers'"),
    (dict(guidance_scale=[1.0, "high"]), "guidance_scale has 2 values for 1"),
  ],
)
def test_wrong_calls_are_refused_before_anything_runs(pipe, call, message):
  with pytest.raises(ValueError, match=message):
    pipe(**dict(prompt="7") | call)


def test_check_refuses_what_a_call_would(pipe):
  pipe.check(["7", "3 1"], height=8)
  with pytest.raises(ValueError, match="height = 9"):
    pipe.check("7", height=9)
  with pytest.raises(TypeError, match="did you mean 'height'"):
    pipe.check("7", hight=8)


def test_an_export_comes_back_and_is_checked(pipe, tmp_path):
  pipe.save_pretrained(tmp_path)
  again = LuminaPipeline.from_pretrained(tmp_path)
  assert again.network == pipe.network and again.options == pipe.options
  assert again.components.sizes == pipe.components.sizes
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8),
    again.params,
    pipe.params,
  )
  config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
  text, whole = config.read_text(), weights.read_bytes()
  config.write_text(text.replace('"depth": 2', '"depth": 3'))
  with pytest.raises(ValueError, match=r"expected \(3, .*found \(2, "):
    LuminaPipeline.from_pretrained(tmp_path)
  config.write_text(text)
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="cannot be read"):
    LuminaPipeline.from_pretrained(tmp_path)
  weights.unlink()
  with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
    LuminaPipeline.from_pretrained(tmp_path)


def test_options_are_the_defaults_of_calls(pipe):
  other = LuminaPipeline(pipe.components)
  other.options = dataclasses.replace(pipe.options, guidance_scale=1.0)
  (expected,) = generate(pipe, "7", guidance_scale=1.0)
  np.testing.assert_array_equal(generate(other, "7")[0], expected)
  assert pipe.options.guidance_scale != 1
  assert repr(pipe).startswith("LuminaPipeline(image, width 32, depth 2")


def test_shipped_weights_write_the_prompt():
  """A digit in its caption's place, read by a classifier of real digits."""
  from data_pipelines.digits import split
  from lumina_jax.evaluation import digits as judging

  pipe = LuminaPipeline.from_pretrained()
  reader = judging.DigitClassifier(split(0.2)[0])
  prompts = [str(d) for d in range(10)] * 3
  images = generate(pipe, prompts, seed=list(range(30)))
  digits = judging.split_canvases(images, 1, 1)
  assert reader.accuracy(digits, np.arange(30) % 10) >= 0.9
