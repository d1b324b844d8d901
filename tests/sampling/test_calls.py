"""Calls of a text-to-image pipeline: arguments of diffusers' and ours."""

import numpy as np
import pytest
from support import tiny_pipeline as tiny

from lumina_jax import LuminaPipeline

CALL = dict(num_inference_steps=2, output_type="uint8")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
  folder = tiny.write_diffusers(tmp_path_factory.mktemp("hub") / "peer")
  return LuminaPipeline.from_pretrained(folder, dtype="float32")


def draw(pipe, prompt=tiny.PROMPT, **call):
  return np.stack(pipe(prompt, **CALL | call).images).astype(int)


def differ(a, b):
  return np.abs(a - b).max()


def test_a_seed_and_what_stands_for_one(pipe):
  class Torch:
    def initial_seed(self):
      return 7

  expected = draw(pipe, seed=7)
  for generator in (7, np.int64(7), Torch(), [Torch()]):
    assert differ(draw(pipe, generator=generator), expected) == 0
  assert differ(draw(pipe), draw(pipe, seed=0)) == 0
  one, other = (np.random.default_rng(3) for _ in range(2))
  assert differ(draw(pipe, generator=one), draw(pipe, generator=other)) == 0
  assert differ(draw(pipe, seed=8), expected) > 1
  # One for each picture, as in diffusers: each is the first of its seed.
  two = draw(pipe, generator=[8, 7], num_images_per_prompt=2)
  assert differ(two[1], expected[0]) == 0 < differ(two[0], expected[0])


@pytest.mark.slow
def test_latents_take_the_place_of_noise(pipe):
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((2, 8, 12, 4), np.float32)
  call = dict(height=16, width=24, num_images_per_prompt=2)
  a, b = draw(pipe, latents=latents, **call)
  assert differ(a, b) > 1
  turned = draw(pipe, latents=latents[::-1], seed=5, **call)
  assert differ(turned, np.stack([b, a])) <= 1


def test_kinds_of_output(pipe):
  u8 = pipe(tiny.PROMPT, **CALL).images[0]
  unit = pipe(tiny.PROMPT, **CALL | dict(output_type="np")).images[0]
  assert unit.dtype == np.float32 and 0 <= unit.min() < unit.max() <= 1
  np.testing.assert_array_equal(np.round(unit * 255).astype(np.uint8), u8)
  pil = pipe(tiny.PROMPT, **CALL | dict(output_type="pil")).images[0]
  np.testing.assert_array_equal(np.asarray(pil), u8)
  (latent,) = pipe(tiny.PROMPT, **CALL | dict(output_type="latent")).images
  assert latent.shape == (8, 8, 4)
  decoded = np.asarray(pipe.vae.decode(latent))
  np.testing.assert_array_equal(
    np.round((np.clip(decoded, -1, 1) + 1) * 127.5).astype(np.uint8), u8
  )
  np.testing.assert_array_equal(pipe(tiny.PROMPT, **CALL)[0][0], u8)
  (images,) = pipe(tiny.PROMPT, **CALL, return_dict=False)
  np.testing.assert_array_equal(images[0], u8)


def test_a_callback_sees_each_step_and_changes_nothing(pipe):
  seen = []

  def step(shown, number, time, values):
    assert shown is pipe
    seen.append((number, round(time, 4), len(values["latents"])))

  call = dict(num_inference_steps=4, shift=1.0, num_images_per_prompt=2)
  watched = draw(pipe, **call, callback_on_step_end=step)
  assert differ(watched, draw(pipe, **call)) <= 1
  # Pictures go one to a batch.
  steps = [(0, 0.25, 1), (1, 0.5, 1), (2, 0.75, 1), (3, 1.0, 1)]
  assert seen == steps * 2


def test_a_callback_may_change_latents(pipe):
  marked = np.full((8, 8, 4), 0.5, np.float32)

  def step(pipe, number, time, values):
    if number == 3:
      return {"latents": [marked]}
    return None

  (latent,) = pipe(
    tiny.PROMPT,
    num_inference_steps=4,
    output_type="latent",
    callback_on_step_end=step,
  ).images
  np.testing.assert_array_equal(latent, marked)


def test_a_limit_of_tokens(pipe):
  long = f"{tiny.PROMPT} and {tiny.PROMPT}"
  whole = draw(pipe, long)
  assert differ(draw(pipe, long, max_sequence_length=256), whole) == 0
  short = draw(pipe, long, max_sequence_length=4)
  assert differ(short, whole) > 1
  other = draw(pipe, f"{tiny.PROMPT} at night", max_sequence_length=4)
  assert differ(short, other) <= 1


def test_captions_may_be_cleaned(pipe):
  messy = "  An ORANGE cat www.cats.com "
  plain = draw(pipe, "an orange cat")
  assert differ(draw(pipe, messy), plain) > 1
  assert differ(draw(pipe, messy, clean_caption=True), plain) <= 1
  stripped = draw(pipe, "  An ORANGE cat ", clean_caption=False)
  assert differ(stripped, plain) <= 1


def test_features_can_be_encoded_once(pipe):
  names = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
  )
  prompts = ["fox", tiny.PROMPT]
  encoded = pipe.encode_prompt(prompts, "snow")
  assert encoded[0].shape == encoded[2].shape == (2, len(encoded[1][0]), 24)
  given = dict(zip(names, encoded, strict=True))
  expected = draw(pipe, prompts, negative_prompt="snow")
  assert differ(draw(pipe, None, **given), expected) <= 1
  # Negative ones may be left to the pipeline.
  plus = {name: given[name] for name in names[:2]}
  mixed = draw(pipe, None, negative_prompt="snow", **plus)
  assert differ(mixed, expected) <= 1
  # As diffusers: not cleaned, but no longer than the longest prompt.
  how = dict(compatibility="diffusers", negative_prompt=f" SNOW {'fox ' * 30}")
  expected = draw(pipe, prompts, **how)
  assert differ(draw(pipe, None, **plus, **how), expected) <= 1


def test_without_guidance_nothing_negative_is_needed(pipe):
  encoder, pipe.text_encoder = pipe.text_encoder, None
  text = np.random.default_rng(0).standard_normal((1, 5, 24), np.float32)
  try:
    assert draw(pipe, None, prompt_embeds=text, guidance_scale=1.0).any()
    with pytest.raises(ValueError, match="negative_prompt_embeds is missing"):
      draw(pipe, None, prompt_embeds=text)
  finally:
    pipe.text_encoder = encoder
  encoder.clear_memory()
  draw(pipe, guidance_scale=1.0)
  assert encoder.is_cached([tiny.PROMPT]) and not encoder.is_cached([""])


def test_a_scalar_of_any_library_is_one_value(pipe):
  import jax.numpy as jnp

  expected = draw(pipe, seed=3, guidance_scale=2.0)
  found = draw(pipe, seed=jnp.int32(3), guidance_scale=np.float32(2))
  assert differ(found, expected) == 0


@pytest.mark.slow
def test_stepping_compiles_one_program(pipe):
  from lumina_jax.sampling import program as sampler

  call = dict(num_inference_steps=3, solver="heun")
  before = sampler.advance._cache_size()
  draw(pipe, **call, callback_on_step_end=lambda *_: None)
  assert sampler.advance._cache_size() == before + 1


@pytest.mark.slow
def test_guidance_acts_on_three_channels(pipe):
  """As in the original: the fourth is plain conditional in each step."""
  call = dict(num_inference_steps=1, solver="euler", output_type="latent")
  plain, strong = (
    pipe(tiny.PROMPT, guidance_scale=s, **call).images[0] for s in (1.0, 5.0)
  )
  np.testing.assert_allclose(strong[..., 3], plain[..., 3], atol=1e-5)
  assert np.abs(strong[..., :3] - plain[..., :3]).max() > 0.1


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (dict(height=30), "no multiple of 4 .*near it are 28 or 32"),
    (dict(height=2), "near it are 4"),
    (dict(prompt=None), "prompt None"),
    (dict(seed=1, generator=2), "give one of them"),
    (dict(generator="x"), "generator 'x'"),
    (dict(output_type="pt"), r"torch\.from_numpy"),
    (dict(latents=np.zeros((1, 4, 8, 8))), r"transpose\(1, 2, 0\)"),
    (dict(generator=[1, 2]), "seed has 2 values for 1 prompts"),
    (
      dict(negative_prompt_embeds=np.zeros((1, 3, 24))),
      "without prompt_embeds",
    ),
    (dict(latents=np.zeros((2, 8, 8, 4))), "2 for 1 pictures"),
    (dict(prompt_embeds=np.zeros((1, 3, 24))), "prompt and prompt_embeds"),
    (
      dict(prompt=None, prompt_embeds=np.zeros((1, 3, 20))),
      r"takes f32\[S, 24\]",
    ),
    (dict(max_sequence_length=0), "max_sequence_length = 0"),
    (dict(max_sequence_length=300), "from 1 to 256"),
    (
      dict(
        callback_on_step_end=print,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
      ),
      "there are 'latents' only",
    ),
    (dict(compatibility="difusers"), "did you mean 'diffusers'"),
    (dict(compatibility=3), "compatibility 3"),
    (dict(solver=3), "unknown solver 3"),
    (dict(seed="abc"), "seed = 'abc': a finite number"),
    (dict(seed=[None]), "seed = None"),
    (dict(guidance_scale="high"), "guidance_scale = 'high'"),
    (dict(guidance_scale=float("nan")), "guidance_scale = nan"),
    (dict(height=float("nan")), "whole pixels"),
    (dict(num_images_per_prompt=1.5), "a positive whole number"),
    (dict(num_inference_steps=1.5), "num_inference_steps = 1.5: a whole"),
    (dict(negative_prompt=[None]), "negative_prompt .None."),
    (dict(negative_prompt=[]), "no negative_prompt"),
    (dict(prompt="\ud800"), "no Unicode"),
    (dict(latents=3), "latents = 3: an array"),
    (dict(scaling_watershed=5), "watershed = 5"),
    (dict(prompt=None, prompt_embeds=3), "prompt_embeds = 3: an array"),
    (
      dict(callback_on_step_end=lambda *_: {"latents": []}),
      "returned latents: 0 for 1 pictures",
    ),
  ],
)
def test_wrong_calls(pipe, call, message):
  with pytest.raises(ValueError, match=message):
    pipe(**dict(prompt=tiny.PROMPT) | call)


def test_pictures_that_are_none_are_refused_with_advice(pipe, monkeypatch):
  monkeypatch.setattr(
    pipe.vae, "decode", lambda latents, tile: np.full((16, 16, 3), np.nan)
  )
  with pytest.raises(FloatingPointError, match="768 of 768 values are not fin"):
    pipe(tiny.PROMPT, **CALL)
