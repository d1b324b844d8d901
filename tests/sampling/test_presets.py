"""What a call samples with: defaults, the preset, what the caller changes."""

import dataclasses

import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.flow import schedule
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import presets

MODEL = PUBLISHED["next_dit_t2i_2b_gqa"]
OWN = defaults.sampling(MODEL, 128)


def test_times_of_diffusers_scheduler():
  times = np.asarray(schedule.diffusers(5, 1.0))
  noise = [1.0, 0.75025, 0.5005, 0.25075, 0.001, 0.0]
  np.testing.assert_allclose(1 - times, noise, atol=1e-6)


def test_the_preset_is_what_diffusers_does():
  theirs = presets.choose(OWN, "diffusers", {"shift": 3.0}, {})
  found = theirs.solver, theirs.shift, theirs.schedule
  assert found == ("euler", 3, "diffusers")
  assert (theirs.beyond.watershed, theirs.beyond.below) == (1.0, True)


def test_the_caller_stands_above_both():
  how = dict(
    solver="heun",
    shift=None,
    scaling_watershed=0.5,
    proportional_attention=False,
  )
  mine = presets.choose(OWN, "diffusers", {}, how)
  assert (mine.solver, mine.shift) == ("heun", 1.0)
  assert (mine.beyond.watershed, mine.beyond.proportional) == (0.5, False)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("difusers", {}, {}), "did you mean 'diffusers'"),
    (("diffusers", {"use_dynamic_shifting": True}, {}), "use_dynamic_shifting"),
    (("diffusers", {"num_train_timesteps": 100}, {}), "num_train_timesteps"),
    ((None, {}, {"shift": -1.0}), "shift = -1.0"),
    ((None, {}, {"solver": "midpiont"}), "did you mean 'midpoint'"),
  ],
)
def test_what_cannot_be_done_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    presets.choose(OWN, *arguments)


def test_without_a_rule_there_is_nothing_to_change():
  plain = dataclasses.replace(OWN, beyond=None)
  with pytest.raises(ValueError, match="watershed: this pipeline has no rule"):
    presets.choose(plain, None, {}, {"scaling_watershed": 0.5})


def test_arguments_of_a_call_reach_their_fields():
  how = dict(
    solver="dpm2m",
    schedule="sigmoid",
    shift=3,
    shift_tokens=4096.0,
    guidance_interval=[0, "0.5"],
    guidance_renorm=1,
    rope_scaling="dype_ntk",
    proportional_attn=False,
  )
  found = presets.choose(OWN, None, {}, how)
  assert found == dataclasses.replace(
    OWN,
    solver="dpm2m",
    schedule="sigmoid",
    shift=3.0,
    shift_tokens=4096,
    guidance_interval=(0.0, 0.5),
    guidance_renorm=1.0,
    beyond=dataclasses.replace(OWN.beyond, rule="dype_ntk", proportional=False),
  )


def test_an_argument_that_there_is_none_of():
  with pytest.raises(TypeError, match=r"'sheduler'; did you mean 'schedule'\?"):
    presets.choose(OWN, None, {}, {"sheduler": "uniform"})


@pytest.mark.parametrize(
  ("how", "message"),
  [
    (dict(solver="eular"), "unknown solver 'eular'; did you mean 'euler'"),
    (dict(schedule="sigmoyd"), "did you mean 'sigmoid'"),
    (dict(rope_scaling="yarm"), "did you mean 'yarn'"),
    (dict(diffusion="sigmas"), "did you mean 'sigma'"),
    (dict(last_step="tweedy"), "did you mean 'tweedie'"),
    (dict(guidance_interval=(0.5, 0.2)), r"\(0.5, 0.2\): two times"),
    (dict(guidance_interval=0.3), "0.3: two numbers"),
    (dict(guidance_interval=(0, 2)), "from 0 "),
    (dict(guidance_renorm=-1), "guidance_renorm = -1"),
    (dict(guidance_channels=1.5), "guidance_channels = 1.5: a whole number"),
    (dict(shift="much"), "shift = 'much'"),
    (dict(shift_tokens=-5), "shift_tokens = -5"),
    (dict(rtol=0, solver="dopri5"), "rtol = 0"),
    (dict(scaling_watershed=1.2), "watershed = 1.2"),
    (dict(scaling_watershed=0.2, rope_scaling="yarn"), "rope_scaling='water"),
    (dict(rtol=1e-2), "rtol = 0.01 is read with solver='dopri5' only"),
    (dict(diffusion="linear"), "read with solver='sde_euler'"),
    (dict(schedule=[0, 1], shift=2.0), "shift = 2.0: times that schedule"),
    (dict(schedule=[0, 1], num_inference_steps=7), "7, but .* has 1 step"),
    (dict(sigmas=[1.0, 0.5], num_inference_steps=7), "7, but .* has 2 step"),
    (dict(schedule="rational"), "'uniform' with a shift"),
    (dict(num_inference_steps=True), "num_inference_steps = True"),
    (dict(proportional_attention="false"), "'false': True or False"),
    (
      dict(proportional_attention=True, proportional_attn=True),
      "are the same: give one",
    ),
  ],
)
def test_values_out_of_range_are_named(how, message):
  with pytest.raises(ValueError, match=message):
    presets.choose(OWN, None, {}, how)
