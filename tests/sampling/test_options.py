"""Options: declared once, checked, and overridden by a call."""

import dataclasses

import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import overrides
from lumina_jax.sampling.options import SamplingOptions, option
from lumina_jax.sampling.overrides import override

DEFAULTS = defaults.options(PUBLISHED["next_dit_t2i_2b_gqa"])


@dataclasses.dataclass(frozen=True)
class Regions:
  ratio: float = option("Share of the tokens that run.", 0.5)
  first: int = option("Step to begin at.", 0)


@dataclasses.dataclass(frozen=True)
class WithGroup(SamplingOptions):
  ras: Regions | None = option("Skips regions.", None)


def test_every_field_has_help():
  for field in dataclasses.fields(SamplingOptions):
    assert field.metadata["help"].endswith("."), field.name


def test_arguments_of_a_call_reach_their_fields():
  values = dict(
    solver="dpm2m",
    schedule="sigmoid",
    shift=3,
    shift_tokens=4096.0,
    guidance_interval=[0, "0.5"],
    guidance_renorm=np.float32(1),
    rope_scaling="dype_ntk",
    proportional_attn=False,
  )
  assert override(DEFAULTS, values) == dataclasses.replace(
    DEFAULTS,
    solver="dpm2m",
    schedule="sigmoid",
    shift=3.0,
    shift_tokens=4096,
    guidance_interval=(0.0, 0.5),
    guidance_renorm=1.0,
    rope_scaling="dype_ntk",
    proportional_attention=False,
  )
  nothing = dict.fromkeys(overrides.names())
  assert override(DEFAULTS, nothing) == DEFAULTS


def test_noise_levels_in_any_kind_of_list():
  for levels in ([1.0, 0.5], (1.0, 0.5), np.asarray([1.0, 0.5]), ["1", "0.5"]):
    assert override(DEFAULTS, {"sigmas": levels}).sigmas == (1.0, 0.5)
  # The schedule of a call replaces the noise levels of a config.
  levels = dataclasses.replace(DEFAULTS, sigmas=(1.0, 0.5))
  assert override(levels, {"schedule": "uniform"}).steps == 20
  assert levels.steps == 2


def test_a_value_for_each_prompt():
  scales = {"guidance_scale": [1, "2.5"]}
  found = overrides.per_sample(override(DEFAULTS, scales), scales, 2)
  assert found == {"guidance_scale": [1.0, 2.5]}
  assert overrides.per_sample(DEFAULTS, {}, 2)["guidance_scale"] == [4.0, 4.0]
  with pytest.raises(ValueError, match="guidance_scale has 2 values for 3"):
    overrides.per_sample(DEFAULTS, scales, 3)


def test_a_group_of_options_is_one_static_value():
  own = WithGroup(**dataclasses.asdict(DEFAULTS))
  assert overrides.groups(own) == ()
  found = override(own, {"ras": {"ratio": 0.25}})
  assert overrides.groups(found) == (Regions(0.25),)
  assert hash(overrides.groups(found)) == hash((Regions(0.25),))
  assert override(own, {"ras": Regions(first=2)}).ras.first == 2
  with pytest.raises(ValueError, match=r"did you mean 'ratio'"):
    override(own, {"ras": {"ratios": 0.25}})


OUT_OF_RANGE = [
  (dict(solver="eular"), "unknown solver 'eular'; did you mean 'euler'"),
  (dict(solver=3), "solver = 3|unknown solver 3"),
  (dict(schedule="sigmoyd"), "did you mean 'sigmoid'"),
  (dict(schedule=0.5), r"schedule = 0\.5: must be"),
  (dict(sigmas=0.5), r"sigmas = 0\.5: must be a list of numbers"),
  (dict(sigmas="karras"), "sigmas = 'karras'"),
  (dict(sigmas=["karras"]), "sigmas = 'karras'"),
  (dict(sigmas=[[1.0], [0.5, 0.2]]), r"sigmas = \[1\.0\]"),
  (dict(sigmas={1.0, 0.5}), "sigmas = {"),
  (dict(rope_scaling="yarm"), "did you mean 'yarn'"),
  (dict(diffusion="sigmas"), "did you mean 'sigma'"),
  (dict(last_step="tweedy"), "did you mean 'tweedie'"),
  (dict(guidance_interval=(0.5, 0.2)), r"\(0\.5, 0\.2\): must be two times"),
  (dict(guidance_interval=0.3), r"0\.3: must be a list of numbers"),
  (dict(guidance_interval=(0, 1, 1)), "must have 2 items"),
  (dict(guidance_interval=(0, 2)), "from 0 "),
  (dict(guidance_renorm=-1), r"guidance_renorm = -1"),
  (dict(guidance_channels=1.5), r"guidance_channels = 1\.5: must be a whole"),
  (dict(guidance_scale="high"), "guidance_scale = 'high'"),
  (dict(guidance_scale=float("nan")), "guidance_scale = nan"),
  (dict(shift="much"), "shift = 'much'"),
  (dict(shift=0.0), r"shift = 0\.0: must be positive"),
  (dict(shift=float("inf")), "shift = inf"),
  (dict(shift_tokens=-5), "shift_tokens = -5"),
  (dict(strength=0), "strength = 0.*above 0"),
  (dict(strength=1.5), r"strength = 1\.5: .* at most 1"),
  (dict(rtol=0, solver="dopri5"), "rtol = 0"),
  (dict(scaling_watershed=1.2), r"scaling_watershed = 1\.2"),
  (dict(num_inference_steps=True), "num_inference_steps = True"),
  (dict(num_inference_steps=0), "num_inference_steps = 0"),
  (dict(num_inference_steps=1.5), r"num_inference_steps = 1\.5: must be a wh"),
  (dict(proportional_attention="false"), "proportional_attention = 'false'"),
]
WITHOUT_EFFECT = [
  (
    dict(scaling_watershed=0.2, rope_scaling="yarn"),
    r"scaling_watershed = 0\.2 has no effect .* needs rope_scaling = 'watersh",
  ),
  (dict(rtol=1e-2), r"rtol = 0\.01 has no effect .* needs solver = 'dopri5'"),
  (dict(diffusion="linear"), "needs solver = 'sde_euler' or 'sde_heun'"),
  (dict(schedule=[0, 1], shift=2.0), r"shift = 2\.0 has no effect on explicit"),
  (dict(schedule=[0, 1], sigmas=[1.0]), "schedule and sigmas: pass one"),
  (dict(schedule="uniform", sigmas=[1.0]), "schedule and sigmas: pass one"),
  (dict(schedule=[], num_inference_steps=7), "7, but .* has 0 steps"),
  (dict(schedule=[0, 1], num_inference_steps=7), "7, but .* has 1 steps"),
  (dict(sigmas=[1.0, 0.5], num_inference_steps=7), "7, but .* has 2 steps"),
  (
    dict(proportional_attention=True, proportional_attn=True),
    "are the same: pass one",
  ),
]


@pytest.mark.parametrize(("values", "message"), OUT_OF_RANGE + WITHOUT_EFFECT)
def test_values_that_do_not_fit_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    override(DEFAULTS, values)
