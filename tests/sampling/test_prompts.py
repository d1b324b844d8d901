"""Prompts: cleaned, cut off, encoded once, or passed as features."""

import numpy as np
import pytest
from support import tiny_pipeline as tiny
from support.pipelines import distance, replaced

NAMES = (
  "prompt_embeds",
  "prompt_attention_mask",
  "negative_prompt_embeds",
  "negative_prompt_attention_mask",
)
CALL = dict(num_inference_steps=2, output_type="uint8", seed=0)
LONG = f"{tiny.PROMPT} and {tiny.PROMPT}"


@pytest.fixture(scope="module")
def generate(latents):
  def generate(prompt=tiny.PROMPT, pipe=latents, **call):
    return np.stack(pipe(prompt, **CALL | call).images).astype(int)

  return generate


def test_tokens_beyond_the_limit_do_not_count(generate):
  whole = generate(LONG)
  assert distance(generate(LONG, max_sequence_length=256), whole) == 0
  short = generate(LONG, max_sequence_length=4)
  assert distance(short, whole) > 1
  other = generate(f"{tiny.PROMPT} at night", max_sequence_length=4)
  assert distance(short, other) <= 1


def test_captions_may_be_cleaned(generate):
  messy = "  An ORANGE cat www.cats.com "
  plain = generate("an orange cat")
  assert distance(generate(messy), plain) > 1
  assert distance(generate(messy, clean_caption=True), plain) <= 1
  stripped = generate("  An ORANGE cat ", clean_caption=False)
  assert distance(stripped, plain) <= 1


def test_prompts_can_be_encoded_once(latents, generate):
  prompts = ["fox", tiny.PROMPT]
  encoded = latents.encode_prompt(prompts, "snow")
  assert encoded[0].shape == encoded[2].shape == (2, len(encoded[1][0]), 24)
  given = dict(zip(NAMES, encoded, strict=True))
  expected = generate(prompts, negative_prompt="snow")
  assert distance(generate(None, **given), expected) <= 1
  # Negative ones may be left to the pipeline.
  positive = {name: given[name] for name in NAMES[:2]}
  mixed = generate(None, negative_prompt="snow", **positive)
  assert distance(mixed, expected) <= 1
  # As diffusers: not cleaned, but no longer than the longest prompt.
  call = dict(compatibility="diffusers", negative_prompt=f" SNOW {'fox ' * 30}")
  expected = generate(prompts, **call)
  assert distance(generate(None, **positive, **call), expected) <= 1


def test_without_guidance_no_negative_prompt_is_encoded(latents, generate):
  alone = replaced(latents, text_encoder=None)
  text = np.random.default_rng(0).standard_normal((1, 5, 24), np.float32)
  assert generate(None, alone, prompt_embeds=text, guidance_scale=1.0).any()
  with pytest.raises(ValueError, match="negative_prompt_embeds is missing"):
    generate(None, alone, prompt_embeds=text)
  encoder = latents.text_encoder
  encoder.clear_memory()
  generate(guidance_scale=1.0)
  assert encoder.is_cached([tiny.PROMPT]) and not encoder.is_cached([""])


def test_a_long_prompt_is_cut_off_with_a_warning(pixels, caplog):
  pixels("seven " * 50, height=8, width=8)
  assert "prompt cut off" in caplog.text


def test_networks_with_an_encoder_take_and_show_no_features(pixels):
  message = "prompt_embeds: this network encodes prompts itself"
  with pytest.raises(ValueError, match=message):
    pixels(prompt_embeds=np.zeros((1, 3, 24)))
  with pytest.raises(ValueError, match="pass prompts to calls as they are"):
    pixels.encode_prompt("7")
  names = dict(callback_on_step_end_tensor_inputs=["prompt_embeds"])
  with pytest.raises(ValueError, match=r"\['prompt_embeds'\]: use latents$"):
    pixels("7", **names, callback_on_step_end=print)


def test_encoding_takes_a_negative_prompt_for_all_or_for_each(latents):
  one = latents.encode_prompt(["fox", "cat"], "snow")
  each = latents.encode_prompt(["fox", "cat"], ["snow", "snow"])
  for a, b in zip(one, each, strict=True):
    np.testing.assert_array_equal(a, b)
  none = latents.encode_prompt("fox", None)
  np.testing.assert_array_equal(none[2], latents.encode_prompt("fox", "")[2])
  with pytest.raises(ValueError, match="negative_prompt has 1 values for 2"):
    latents.encode_prompt(["fox", "cat"], ["snow"])
  with pytest.raises(ValueError, match="did you mean 'diffusers'"):
    latents.encode_prompt("fox", compatibility="difusers")


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (dict(prompt=None), "prompt = None: must be a string"),
    (dict(negative_prompt=[None]), "negative_prompt = .None"),
    (dict(negative_prompt=["a", "b"]), "negative_prompt has 2 values for 1"),
    (dict(negative_prompt=[]), 'negative_prompt is empty; "" is an uncond'),
    (dict(negative_prompt=3), "negative_prompt = 3: must be a string"),
    (
      dict(prompt_embeds=np.zeros((1, 3, 24))),
      "prompt and prompt_embeds: pass",
    ),
    (
      dict(negative_prompt_embeds=np.zeros((1, 3, 24))),
      "negative_prompt_embeds without prompt_embeds",
    ),
    (
      dict(prompt=None, prompt_embeds=np.zeros((1, 3, 20))),
      r"takes f32\[S, 24\]",
    ),
    (
      dict(prompt=None, prompt_embeds=np.zeros((0, 3, 24))),
      "prompt_embeds is empty",
    ),
    (
      dict(
        prompt=None,
        prompt_embeds=np.zeros((1, 3, 24)),
        negative_prompt_embeds=np.zeros((2, 3, 24)),
      ),
      "negative_prompt_embeds has 2 rows for 1 of prompt_embeds",
    ),
    (
      dict(
        prompt=None,
        prompt_embeds=np.zeros((1, 3, 24)),
        negative_prompt="snow",
        negative_prompt_embeds=np.zeros((1, 3, 24)),
      ),
      "negative_prompt and negative_prompt_embeds: pass one",
    ),
    (dict(max_sequence_length=0), "max_sequence_length = 0"),
    (dict(max_sequence_length=300), "from 1 to 256"),
    (
      dict(max_sequence_length=2.5),
      "max_sequence_length = 2.5: must be a whole",
    ),
    (dict(clean_caption="no"), "clean_caption = 'no' must be of type bool"),
    (
      dict(prompt_attention_mask=np.ones((1, 3))),
      "prompt_attention_mask without prompt_embeds",
    ),
    (
      dict(negative_prompt_attention_mask=np.ones((1, 3))),
      "negative_prompt_attention_mask without negative_prompt_embeds",
    ),
  ],
)
def test_prompts_that_do_not_fit_are_named(latents, call, message):
  with pytest.raises(ValueError, match=message):
    latents(**dict(prompt=tiny.PROMPT) | CALL | call)
