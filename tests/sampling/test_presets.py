"""Presets: how other programs sample with the same weights."""

import dataclasses

import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.pretrained import defaults
from lumina_jax.sampling.overrides import override
from lumina_jax.sampling.presets import preset
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

MODEL = PUBLISHED["next_dit_t2i_2b_gqa"]


@dataclasses.dataclass(frozen=True)
class Defaults:
  """The components that a preset reads."""

  options: object = defaults.options(MODEL)
  sizes: object = defaults.sizes(MODEL, 128)
  scheduler: dict = dataclasses.field(default_factory=dict)


def test_the_preset_samples_as_diffusers_does():
  found = preset("diffusers", Defaults(scheduler={"shift": 3.0}))
  options = found.options
  assert (options.solver, options.shift) == ("euler", 3)
  assert (options.schedule, options.scaling_watershed) == ("diffusers", 1.0)
  assert options.proportional_attention
  assert found.sizes.trained == TrainedSize(128, 4096, below=True)
  unknown = Defaults(sizes=SizeConfig(default=(8, 8)))
  assert preset("diffusers", unknown).options.rope_scaling == "none"
  assert preset(None, unknown) is unknown


def test_a_call_overrides_the_preset():
  values = dict(solver="heun", scaling_watershed=0.5, proportional_attn=False)
  options = preset("diffusers", Defaults()).options
  assert override(options, values) == dataclasses.replace(
    options, solver="heun", scaling_watershed=0.5, proportional_attention=False
  )


@pytest.mark.parametrize(
  ("name", "scheduler", "message"),
  [
    ("difusers", {}, "did you mean 'diffusers'"),
    (3, {}, "compatibility 3"),
    ("diffusers", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ("diffusers", {"num_train_timesteps": 100}, "num_train_timesteps"),
    ("diffusers", {"_class_name": "DDIMScheduler"}, "is a DDIMScheduler"),
  ],
)
def test_what_no_preset_supports_is_refused(name, scheduler, message):
  with pytest.raises(ValueError, match=message):
    preset(name, Defaults(scheduler=scheduler))
