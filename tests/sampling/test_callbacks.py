"""Callbacks receive tensors of each step, and may change them."""

import jax
import numpy as np
import pytest
from support import tiny_pipeline as tiny
from support.pipelines import distance

from lumina_jax.sampling import program as programs

CALL = dict(num_inference_steps=4, output_type="latent", seed=3)
TEXTS = ["prompt_embeds", "negative_prompt_embeds"]


@pytest.fixture(scope="module")
def generate(pixels):
  def generate(prompt="3 1", pipe=pixels, **call):
    return pipe(prompt, **CALL | call).samples

  return generate


def test_each_step_is_seen_and_nothing_changes(generate, pixels):
  steps, ends = [], []

  def callback(step, t, latents):
    steps.append((step, round(t, 4), len(latents), latents[0].shape))

  def on_step_end(pipe, step, t, tensors):
    assert pipe is pixels and tensors.keys() == {"latents"}
    ends.append((step, round(t, 4), len(tensors["latents"])))

  call = dict(solver="ab2", shift=1.0)  # It remembers the step before.
  expected = generate(**call)[0]
  watched = generate(**call, callback=callback)[0]
  assert distance(watched, expected) < 1e-4 * np.abs(expected).max()
  assert steps == [(i, (i + 1) / 4, 1, (8, 16, 1)) for i in range(4)]
  generate(**call, callback_on_step_end=on_step_end)
  assert ends == [step[:3] for step in steps]


@pytest.mark.e2e
def test_noise_of_a_stochastic_solver_is_that_of_the_whole(generate):
  call = dict(solver="sde_euler")
  watched = generate(**call, callback=lambda *_: None)[0]
  expected = generate(**call)[0]
  assert distance(watched, expected) < 1e-4 * np.abs(expected).max()


@pytest.mark.e2e
def test_adaptive_steps_are_seen_one_by_one(generate):
  times = []
  call = dict(solver="dopri5")
  watched = generate(**call, callback=lambda step, t, x: times.append(t))[0]
  assert len(times) > 1 and times[-1] == 1 and times == sorted(times)
  expected = generate(**call)[0]
  assert distance(watched, expected) < 1e-4 * np.abs(expected).max()


def test_latents_of_any_size_may_change(generate):
  prompts = ["3 1", "7"]
  call = dict(num_inference_steps=1)
  expected = generate(prompts, **call)
  same = generate(prompts, **call, callback=lambda step, t, x: x)
  changed = generate(
    prompts,
    **call,
    callback_on_step_end=lambda pipe, step, t, tensors: {
      "latents": [x + 1 for x in tensors["latents"]]
    },
  )
  for one, other, moved in zip(expected, same, changed, strict=True):
    np.testing.assert_allclose(other, one, atol=1e-4)
    np.testing.assert_allclose(moved, one + 1, atol=1e-4)


def test_new_features_of_a_prompt_count_from_the_next_step(latents):
  """Equal to the other prompt, from the first one's latents on."""
  text = latents.encode_prompt("fox", "snow")
  other = dict(zip(TEXTS, (text[0][0], text[2][0]), strict=True))
  names = dict(callback_on_step_end_tensor_inputs=["latents", *TEXTS])
  seen = []

  def exchange(pipe, step, t, tensors):
    seen.append(tensors)
    return {k: [v] for k, v in other.items()} if step == 0 else {}

  def jump(pipe, step, t, tensors):
    return {"latents": seen[0]["latents"]} if step == 0 else None

  call = dict(CALL, num_inference_steps=3)
  (found,) = latents(
    tiny.PROMPT, **call, **names, callback_on_step_end=exchange
  ).images
  (expected,) = latents(
    "fox", negative_prompt="snow", **call, callback_on_step_end=jump
  ).images
  np.testing.assert_allclose(found, expected, atol=1e-4)
  before, after = (np.asarray(step["prompt_embeds"][0]) for step in seen[:2])
  own = latents.encode_prompt(tiny.PROMPT)[0][0]
  np.testing.assert_allclose(before, own, atol=1e-6)
  np.testing.assert_allclose(after, other["prompt_embeds"], atol=1e-6)


def test_constants_are_computed_once_until_features_change(
  latents, monkeypatch
):
  """Text keys and values, once for each batch; new features rebuild them."""
  calls = []

  def watch(name):
    function = getattr(programs, name)

    def watched(params, inputs, *args, **kwargs):
      if not isinstance(inputs.seeds, jax.core.Tracer):
        calls.append(name)
      return function(params, inputs, *args, **kwargs)

    monkeypatch.setattr(programs, name, watched)

  for name in ("begin", "constants", "advance"):
    watch(name)
  call = dict(
    CALL,
    num_inference_steps=3,
    callback_on_step_end_tensor_inputs=["latents", *TEXTS],
  )
  steps = ["begin", "advance", "advance", "advance"]
  # Images go one to a batch.
  watched = latents(
    [tiny.PROMPT, "fox"], **call, callback_on_step_end=lambda *_: None
  ).images
  assert calls == steps * 2
  # The same features and latents change nothing, whatever they cost.
  calls.clear()
  same = latents(
    [tiny.PROMPT, "fox"], **call, callback_on_step_end=lambda *args: args[-1]
  ).images
  assert calls == ["begin", *["advance", "constants"] * 2, "advance"] * 2
  np.testing.assert_allclose(same, watched, atol=1e-5)
  calls.clear()
  latents(
    tiny.PROMPT,
    **call,
    callback_on_step_end=lambda pipe, step, t, tensors: (
      {"negative_prompt_embeds": tensors["prompt_embeds"]} if step == 1 else {}
    ),
  )
  assert calls == [*steps[:3], "constants", steps[3]]


def test_without_guidance_there_are_no_negative_features(latents):
  def callback(pipe, step, t, tensors):
    assert tensors.keys() == {"prompt_embeds"}

  call = dict(CALL, num_inference_steps=1, guidance_scale=1.0)
  latents(
    tiny.PROMPT,
    **call,
    callback_on_step_end=callback,
    callback_on_step_end_tensor_inputs=TEXTS,
  )


def returns(**tensors):
  return dict(callback_on_step_end=lambda *_: tensors)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      dict(callback=print, callback_on_step_end=print),
      "callback and callback_on_step_end: pass one of them",
    ),
    (
      dict(
        callback_on_step_end=print,
        callback_on_step_end_tensor_inputs=["prompt_embed"],
      ),
      "'prompt_embed'.*: use latents, prompt_embeds, negative_prompt_embeds",
    ),
    (dict(callback=3), "callback = 3: must be a function"),
    (dict(progress="bar"), "progress = 'bar': must be a function"),
    (
      dict(callback_on_step_end=lambda *_: [1]),
      "callback_on_step_end returned a list; it may return a dict",
    ),
    (
      dict(callback_on_step_end=print, callback_on_step_end_tensor_inputs=3),
      r"callback_on_step_end_tensor_inputs \[3\]: use latents",
    ),
    (returns(latents=[]), "the callback returned latents has 0 rows for 1"),
    (
      returns(latents=[np.zeros((4, 8, 4))]),
      r"the callback returned latents\[0\] has shape \(4, 8, 4\)",
    ),
    (returns(image=[]), "returned 'image'; it may change latents, prompt_emb"),
    (returns(prompt_embeds=[]), "prompt_embeds has 0 rows for 1 samples"),
    (
      returns(prompt_embeds=[np.zeros((3, 20))]),
      r"prompt_embeds\[0\] has shape \(3, 20\)",
    ),
    (
      returns(prompt_embeds=[np.zeros((99, 24))]),
      "new features of 99 tokens do not fit a row of 64; return shorter ones",
    ),
  ],
)
def test_callbacks_that_do_not_fit_are_named(latents, call, message):
  with pytest.raises(ValueError, match=message):
    latents(tiny.PROMPT, **CALL | dict(num_inference_steps=3), **call)
