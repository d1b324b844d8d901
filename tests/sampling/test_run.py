"""Solvers, guidance and positions of a call, through the pipeline."""

import dataclasses

import numpy as np
import pytest
from support.pipelines import distance, replaced

from lumina_jax.flow.solvers import SOLVERS

CALL = dict(num_inference_steps=4, output_type="latent", seed=3)
LONG = pytest.mark.long
# One of each kind; each compiles a program.
KINDS = ("ab2", "dopri5", "sde_euler")


@pytest.fixture(scope="module")
def generate(pixels):
  def generate(prompt="3 1", pipe=pixels, **call):
    return np.stack(pipe(prompt, **CALL | call).images)

  return generate


@pytest.mark.parametrize(
  "name", [x if x in KINDS else pytest.param(x, marks=LONG) for x in SOLVERS]
)
def test_every_solver_counts_its_evaluations(pixels, name):
  out = pixels("3 1", **CALL, solver=name)
  assert np.isfinite(out.images[0]).all()
  if name == "dopri5":  # 1, and 6 for each step tried.
    assert out.evaluations[0] % 6 == 1 and out.evaluations[0] > 7
  else:
    assert out.evaluations == [4 * SOLVERS[name].evaluations]
  beside = pixels(["7", "3 1"], **CALL, solver=name).images[1]
  # A sample does not depend on others, its noise and steps included.
  assert distance(beside, out.images[0]) < 1e-3


@LONG
@pytest.mark.parametrize("name", ["euler", "rk4_38", "ab2", "dpm2m"])
def test_solvers_agree_where_steps_are_small(generate, name):
  exact = generate(solver="dopri5", rtol=1e-5)
  found = generate(solver=name, num_inference_steps=200)
  allowed = 0.05 if name == "euler" else 5e-3
  assert distance(found, exact) < allowed * np.abs(exact).max()


def test_the_seed_fixes_the_noise_of_a_stochastic_solver(generate):
  one, again = (generate(solver="sde_euler") for _ in range(2))
  np.testing.assert_array_equal(one, again)
  assert distance(one, generate(solver="sde_euler", seed=4)) > 0.1


@LONG
def test_the_last_step_of_a_stochastic_solver_can_be_chosen(generate):
  one = generate(solver="sde_euler")
  other = generate(solver="sde_euler", last_step="mean")
  assert distance(one, other) > 1e-3


@LONG
def test_an_adaptive_solver_that_gives_up_is_an_error(generate, monkeypatch):
  hasty = dataclasses.replace(SOLVERS["dopri5"], max_evaluations=20)
  monkeypatch.setitem(SOLVERS, "dopri5", hasty)
  with pytest.raises(FloatingPointError, match="dopri5 did not finish within"):
    generate(solver="dopri5", rtol=1e-6)


def test_guidance_acts_within_its_interval(generate):
  call = dict(guidance_scale=4.0)
  guided, plain = generate(**call), generate(guidance_scale=1.0)
  assert distance(generate(**call, guidance_interval=(0, 1)), guided) == 0
  half = generate(**call, guidance_interval=(0.5, 1.0))
  assert min(distance(half, guided), distance(half, plain)) > 1e-3
  # Euler's steps begin at 0, 0.25, 0.5 and 0.75.
  never = generate(**call, guidance_interval=(0.8, 0.9))
  assert distance(never, plain) < 1e-5
  assert distance(generate(**call, guidance_renorm=0.5), guided) > 1e-3


def test_a_scale_of_0_generates_from_the_negative_prompt(generate):
  """In one branch; beside another scale in two."""
  call = dict(negative_prompt="4 9", guidance_scale=0.0)
  found = generate("3 1", **call)
  expected = generate("4 9", guidance_scale=1.0)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  call["guidance_scale"] = [0.0, 1.0]
  two = generate(["3 1"] * 2, **call)
  np.testing.assert_allclose(two[0], found[0], rtol=1e-3, atol=1e-3)


def test_sizes_that_prompts_name_are_not_stretched(generate, pixels):
  beyond = replaced(pixels, options=dict(rope_scaling="linear"))
  for prompt in ("7", "3 1", "1 2 / 3 4"):
    expected = generate(prompt)
    found = generate(prompt, beyond)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@LONG
def test_larger_ones_are_stretched_by_the_rule_of_the_call(generate):
  call = dict(height=16, width=32)
  found = [
    generate(**call, rope_scaling=rule, proportional_attention=on)
    for rule in ("none", "linear", "ntk", "dype_linear")
    for on in (False, True)
  ]
  for i, one in enumerate(found):
    for other in found[:i]:
      assert distance(one, other) > 1e-4


def test_an_unknown_trained_size_is_refused(latents):
  unknown = replaced(latents, sizes=dict(trained=None))
  with pytest.raises(ValueError, match=r"set config\.sizes\.trained"):
    unknown("fox", **CALL)


def test_initial_latents_replace_noise(latents):
  rng = np.random.default_rng(0)
  values = rng.standard_normal((2, 8, 12, 4)).astype("f4")
  call = dict(
    num_inference_steps=1,
    output_type="latent",
    height=16,
    width=24,
    num_images_per_prompt=2,
  )
  a, b = latents("fox", **call, latents=values).images
  assert distance(a, b) > 0.1
  turned = latents("fox", **call, latents=values[::-1], seed=5).images
  np.testing.assert_allclose(turned, [b, a], atol=1e-4)


def test_samples_that_are_not_finite_are_refused(pixels, monkeypatch):
  params = dict(pixels.params)
  final = params["backbone"]["final"]
  final = final | {"bias": np.full_like(final["bias"], np.nan)}
  params["backbone"] = params["backbone"] | {"final": final}
  broken = replaced(pixels, weights=type(pixels.weights).pinned(params))
  message = r"sample 0 \('7', seed 3\): 64 of 64 values are not finite"
  with pytest.raises(FloatingPointError, match=message):
    broken("7", **CALL)


def test_decoded_samples_that_are_not_finite_are_refused(latents, monkeypatch):
  def decode(latents):
    return np.full((16, 16, 3), np.nan, np.float32)

  monkeypatch.setattr(latents.vae, "decode", decode)
  message = "sample 0 .*, decoded: 768 of 768 values are not finite"
  with pytest.raises(FloatingPointError, match=message):
    latents("fox", num_inference_steps=1)
