"""Solvers, times, guidance and positions of a call, through the pipeline."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support.configs import randomised, small_config

from lumina_jax.flow.objective import Objective
from lumina_jax.flow.path import VP
from lumina_jax.flow.solvers import SOLVERS, for_path, get_solver
from lumina_jax.sampling import program as sampler
from lumina_jax.sampling.extrapolation import Extrapolation

CALL = dict(num_inference_steps=4, output_type="latent", seed=3)


@pytest.fixture(scope="module")
def pipe():
  return randomised(small_config())


def draw(pipe, prompt="3 1", **call):
  return np.stack(pipe(prompt, **CALL | call).images)


def far(a, b):
  return np.abs(a - b).max()


# Of each kind one; a program each takes time to compile.
KINDS = ("ab2", "dopri5", "sde_euler")
LONG = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
  "name",
  [x if x in KINDS else pytest.param(x, marks=LONG) for x in SOLVERS],
)
def test_every_solver_draws_and_says_how_often_it_asked(pipe, name):
  out = pipe("3 1", **CALL, solver=name)
  assert np.isfinite(out.images[0]).all()
  expected = 4 * SOLVERS[name].evaluations
  if name == "dopri5":  # 1, and 6 a step tried.
    assert out.evaluations[0] % 6 == 1 and out.evaluations[0] > 7
  else:
    assert out.evaluations == [expected]
  alone = pipe(["7", "3 1"], **CALL, solver=name).images[1]
  # Whatever is drawn beside it, also where noise and steps are its own.
  assert far(alone, out.images[0]) < 1e-3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["euler", "rk4_38", "ab2", "dpm2m"])
def test_solvers_agree_where_steps_are_small(pipe, name):
  exact = draw(pipe, solver="dopri5", rtol=1e-5)
  found = draw(pipe, solver=name, num_inference_steps=200)
  allowed = 0.05 if name == "euler" else 5e-3
  assert far(found, exact) < allowed * np.abs(exact).max()


@pytest.mark.parametrize(
  "name", ["ab2", *(pytest.param(x, marks=LONG) for x in KINDS[1:])]
)
def test_watching_changes_nothing(pipe, name):
  """What a solver remembers passes from step to step."""
  seen = []

  def callback(step, t, x):
    seen.append((step, round(t, 4), len(x), x[0].shape))

  watched = draw(pipe, solver=name, callback=callback)
  if name == "dopri5":  # Its steps are its own.
    assert len(seen) > 1 and seen[-1][1] == 1
    assert [t for _, t, *_ in seen] == sorted(t for _, t, *_ in seen)
  else:
    assert seen == [(i, (i + 1) / 4, 1, (8, 16, 1)) for i in range(4)]
  expected = draw(pipe, solver=name)
  assert far(watched, expected) < 1e-4 * np.abs(expected).max()


def test_a_callback_may_change_latents(pipe):
  marked = np.full((8, 16, 1), 0.25, np.float32)

  def callback(step, t, x):
    return [marked] if step == 3 else None

  np.testing.assert_array_equal(draw(pipe, callback=callback)[0], marked)
  with pytest.raises(ValueError, match="the callback returned latents"):
    draw(pipe, callback=lambda step, t, x: [marked[:4]])
  with pytest.raises(ValueError, match="callback and callback_on_step_end"):
    draw(pipe, callback=print, callback_on_step_end=print)


def test_noise_of_a_solver_is_fixed_by_the_seed(pipe):
  one, again = (draw(pipe, solver="sde_euler") for _ in range(2))
  np.testing.assert_array_equal(one, again)
  assert far(one, draw(pipe, solver="sde_euler", seed=4)) > 0.1
  assert far(one, draw(pipe, solver="sde_euler", last_step="mean")) > 1e-3


@pytest.mark.slow
@pytest.mark.long
def test_an_adaptive_solver_that_gives_up_is_no_picture(pipe, monkeypatch):
  hasty = dataclasses.replace(SOLVERS["dopri5"], max_evaluations=20)
  monkeypatch.setitem(SOLVERS, "dopri5", hasty)
  with pytest.raises(FloatingPointError, match="dopri5 did not arrive within"):
    draw(pipe, solver="dopri5", rtol=1e-6)


def test_values_compile_nothing_anew(pipe):
  pipe.sampling = dataclasses.replace(
    pipe.sampling, beyond=Extrapolation("dype_yarn", 0, 0)
  )
  call = CALL | dict(guidance_interval=(0.1, 0.9))
  pipe("3 1", **call, guidance_scale=3.0)
  before = sampler.sample._cache_size()
  for changes in (
    dict(guidance_scale=5.0, seed=9),
    dict(guidance_interval=(0.0, 0.4), guidance_renorm=1.0),
    dict(shift=3.0, shift_tokens=16),
    dict(schedule="sigmoid"),
    dict(schedule=[0, 0.1, 0.2, 0.6, 1.0]),
    dict(sigmas=[1.0, 0.8, 0.5, 0.1], guidance_channels=1),
    dict(height=16, width=32, negative_prompt="7"),
    dict(height=24, width=24, proportional_attention=False),
  ):
    pipe("3 1", **call | dict(guidance_scale=2.0) | changes)
  assert sampler.sample._cache_size() == before


def test_guidance_acts_within_its_interval(pipe):
  call = dict(guidance_scale=4.0)
  guided, plain = draw(pipe, **call), draw(pipe, guidance_scale=1.0)
  assert far(draw(pipe, **call, guidance_interval=(0, 1)), guided) == 0
  half = draw(pipe, **call, guidance_interval=(0.5, 1.0))
  assert min(far(half, guided), far(half, plain)) > 1e-3
  # Euler's steps begin at 0, 0.25, 0.5 and 0.75.
  never = draw(pipe, **call, guidance_interval=(0.8, 0.9))
  assert far(never, plain) < 1e-5
  assert far(draw(pipe, **call, guidance_renorm=0.5), guided) > 1e-3


def test_a_scale_of_0_draws_the_negative_prompt_alone(pipe):
  """In one branch; beside another scale in two."""
  call = dict(negative_prompt="4 9", guidance_scale=0.0)
  found = draw(pipe, "3 1", **call)
  np.testing.assert_allclose(
    found, draw(pipe, "4 9", guidance_scale=1.0), atol=1e-5
  )
  two = draw(
    pipe, ["3 1"] * 2, negative_prompt="4 9", guidance_scale=[0.0, 1.0]
  )
  np.testing.assert_allclose(two[0], found[0], rtol=1e-3, atol=1e-3)


def test_sizes_that_prompts_speak_of_are_not_stretched(pipe):
  plain = dataclasses.replace(pipe.sampling, beyond=None)
  beyond = dataclasses.replace(plain, beyond=Extrapolation("linear", 0, 0))
  for prompt in ("7", "3 1", "1 2 / 3 4"):
    pipe.sampling = plain
    expected = draw(pipe, prompt)
    pipe.sampling = beyond
    np.testing.assert_allclose(draw(pipe, prompt), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_larger_ones_are_stretched_by_the_rule_of_the_call(pipe):
  pipe.sampling = dataclasses.replace(
    pipe.sampling, beyond=Extrapolation("none", 0, 0)
  )
  call = dict(height=16, width=32)
  found = [
    draw(pipe, **call, rope_scaling=rule, proportional_attention=on)
    for rule in ("none", "linear", "ntk", "dype_linear")
    for on in (False, True)
  ]
  for i, one in enumerate(found):
    for other in found[:i]:
      assert far(one, other) > 1e-4


def picture(seed=0, side=(8, 16)):
  return np.random.default_rng(seed).uniform(size=(*side, 1)).astype("f4")


@pytest.mark.slow
@pytest.mark.long
def test_strength_is_how_much_is_drawn_anew(pipe):
  source, call = picture(), CALL | dict(output_type="np")
  distances = []
  for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
    out = pipe("3 1", **call, image=source, strength=strength)
    distances.append(np.sqrt(np.mean((out.images[0] - source) ** 2)))
    assert out.evaluations == [int(np.ceil(4 * strength - 1e-6))]
  assert distances == sorted(distances)
  free = pipe("3 1", **call).images[0]
  np.testing.assert_allclose(out.images[0], free, atol=1e-5)


def test_kinds_of_pictures_to_begin_with(pipe):
  source = (picture() * 255).astype(np.uint8)
  expected = draw(pipe, image=source, strength=0.5)
  grey = Image.fromarray(source[..., 0])
  for image in (grey, [grey], source[..., 0], source / np.float32(255)):
    found = draw(pipe, image=image, strength=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  two = draw(pipe, ["3 1", "3 1"], image=[source, 255 - source], strength=0.5)
  assert far(two[0], expected[0]) < 1e-5 < far(two[1], expected[0])
  # Its size is the picture's, whatever the prompt speaks of.
  assert draw(pipe, "7", image=source).shape == (1, 8, 16, 1)
  numbered = draw(pipe, image=source, num_images_per_prompt=2)
  assert far(numbered[0], numbered[1]) > 1e-3


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (dict(strength=0.5), "strength = 0.5 without image"),
    (dict(image=picture(), strength=0), "strength = 0: above 0"),
    (dict(image=picture(), strength=1.5), "strength = 1.5: .* at most 1"),
    (dict(image=picture(), strength="half"), "strength = 'half'"),
    (dict(image=picture(), height=16), "height=16, but image has 8: resize"),
    (dict(image=picture(side=(9, 8))), r"height=9.*nearest"),
    (dict(image=np.zeros((8, 8, 3), "u1")), r"\(8, 8, 3\): .* \(H, W, 1\)"),
    (dict(image=picture() * 300), "from 0 to 1"),
    (dict(image=picture() * np.nan), "from 0 to 1"),
    (dict(image=[picture()] * 3), "3 pictures for 1 prompts"),
    (dict(image="cat.png"), "image"),
    (dict(solver="midpiont"), "did you mean 'midpoint'"),
    (dict(schedule="sigmoyd"), "did you mean 'sigmoid'"),
    (dict(rope_scaling="ntk"), "this pipeline has no rule"),
    (dict(sigmas=0.5), "sigmas = 0.5"),
    (dict(schedule=0.5), "schedule .*0.5.*: a name, or times"),
    (dict(guidence_interval=(0, 1)), "did you mean 'guidance_interval'"),
  ],
)
def test_wrong_combinations_are_named(pipe, call, message):
  pipe.sampling = dataclasses.replace(pipe.sampling, beyond=None)
  call.setdefault("num_inference_steps", None)
  with pytest.raises((ValueError, TypeError), match=message):
    draw(pipe, **call)


def test_solvers_that_mind_get_the_path_of_the_network(pipe, monkeypatch):
  network = dataclasses.replace(
    pipe.network, objective=Objective("vp", "noise", "none")
  )
  other = type(pipe)(network, pipe.params, pipe.sampling)
  seen = []

  def spy(*_, solver, **__):
    seen.append(solver)
    raise KeyboardInterrupt

  monkeypatch.setattr(sampler, "sample", spy)
  for name in ("dpm2m", "sde_heun"):
    with pytest.raises(KeyboardInterrupt):
      draw(other, solver=name)
    assert seen[-1].path is VP


@pytest.mark.slow
@pytest.mark.long
def test_networks_that_predict_something_else_are_drawn_from(pipe):
  network = dataclasses.replace(
    pipe.network, objective=Objective("vp", "noise", "none")
  )
  other = type(pipe)(network, pipe.params, pipe.sampling)
  for name in ("dpm2m", "sde_heun"):
    assert np.isfinite(draw(other, solver=name)).all()


def test_solvers_are_told_their_path():
  for name in ("dpm2m", "sde_euler", "sde_heun"):
    assert for_path(SOLVERS[name], VP).path is VP
  assert for_path(SOLVERS["midpoint"], VP) is SOLVERS["midpoint"]
  found = get_solver("sde_heun", form="linear", last="none", rtol=1.0)
  assert (found.form, found.last) == ("linear", "none")


@pytest.mark.parametrize(
  "name", ["dpm2m", pytest.param("midpoint", marks=LONG)]
)
def test_padding_and_empty_rows_stay_zero(pipe, name, monkeypatch):
  seen, sample = [], sampler.sample

  def spy(*args, **kwargs):
    seen.append((args[1], sample(*args, **kwargs)))
    return seen[-1][1]

  monkeypatch.setattr(sampler, "sample", spy)
  draw(pipe, solver=name)
  ((request, state),) = seen
  padding = np.asarray(request.tokens.segments) == 0
  assert padding.all(axis=1).any()  # Rows without any picture.
  np.testing.assert_array_equal(np.asarray(state.x)[padding], 0)
