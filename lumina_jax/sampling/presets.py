"""Presets: how other programs sample with the same weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lumina_jax.files.suggest import check_name
from lumina_jax.flow.schedule import DIFFUSERS
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.sizes import TrainedSize

PRESETS = (DIFFUSERS,)
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
# Settings of its scheduler, and the one value that the preset supports.
SUPPORTED = {
  "num_train_timesteps": 1000,
  "use_dynamic_shifting": False,
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
  "invert_sigmas": False,
  "stochastic_sampling": False,
  "shift_terminal": None,
}


def preset(name: str | None, components: Components) -> Components:
  """Components whose defaults are those of a preset.

  "diffusers" is its LuminaPipeline: Euler steps on its scheduler's times, three
  guided channels, and positions stretched linearly at every size and time.

  Args:
    name: of the preset; None = the components as they are.
    components: with the scheduler's configuration.

  Raises:
    ValueError: for an unknown name, or a scheduler that does more than shift.
  """
  if name is None:
    return components
  check_name("compatibility", name, PRESETS)
  _check_scheduler(components.scheduler)
  sizes, rule = components.sizes, "none"
  if sizes.trained is not None:
    side = sizes.trained.side
    # It counts patches of two, and stretches smaller samples too.
    trained = TrainedSize(side, (side // 2) ** 2, below=True)
    sizes, rule = dataclasses.replace(sizes, trained=trained), "watershed"
  options = dataclasses.replace(
    components.options,
    solver="euler",
    num_inference_steps=30,
    guidance_scale=4.0,
    shift=float(components.scheduler.get("shift", 1.0)),
    guidance_channels=3,
    schedule=DIFFUSERS,
    shift_tokens=0,
    sigmas=(),
    guidance_interval=(0.0, 1.0),
    guidance_renorm=0.0,
    rope_scaling=rule,
    scaling_watershed=1.0,
    proportional_attention=rule != "none",
  )
  return dataclasses.replace(components, options=options, sizes=sizes)


def _check_scheduler(scheduler: Mapping[str, Any]) -> None:
  name = scheduler.get("_class_name", SCHEDULER_CLASS)
  if name != SCHEDULER_CLASS:
    raise ValueError(
      f"the scheduler of this pipeline is a {name}; the preset supports "
      f"{SCHEDULER_CLASS}"
    )
  for key, value in SUPPORTED.items():
    if (scheduler.get(key, value) or None) != (value or None):
      raise ValueError(
        f"the scheduler of this pipeline has {key} = {scheduler[key]!r}, which "
        "the preset does not support; pass its levels as sigmas= without "
        "compatibility="
      )
