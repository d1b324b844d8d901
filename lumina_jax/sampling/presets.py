"""How a call samples: defaults, a preset above them, what the caller says."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from lumina_jax.files.suggest import check_name
from lumina_jax.flow.schedule import DIFFUSERS
from lumina_jax.flow.sde import Stochastic
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling.extrapolation import Extrapolation
from lumina_jax.sampling.program import SamplingConfig

PRESETS = (DIFFUSERS,)
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
# What its scheduler may be told, and the one value that the preset knows.
SCHEDULER = {
  "num_train_timesteps": 1000,
  "use_dynamic_shifting": False,
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
  "invert_sigmas": False,
  "stochastic_sampling": False,
  "shift_terminal": None,
}


class How(TypedDict, total=False):
  """How a call samples, where that differs from the pipeline's own way.

  None = as the pipeline does.

  Attributes:
    num_inference_steps: integration steps.
    solver: a name of `flow.solvers.SOLVERS`: euler, midpoint, heun, heun3, rk4,
      rk4_38, ab2, dpm2m, dopri5, sde_euler, sde_heun.
    schedule: of the times: "uniform", "sigmoid" or "diffusers"; or the times
      themselves, rising from 0 (noise) to 1 (data), which no shift then moves.
    shift: of the times; above 1 spends more steps near noise.
    shift_tokens: tokens for which the shift is meant; 0 = all sizes.
    sigmas: noise levels to step through, from 1 downwards, before the shift;
      the last step leads to 0.
    guidance_interval: times between which guidance acts.
    guidance_renorm: how many times as long as the conditional velocity the
      steered one may be; 0 = any.
    guidance_channels: how many of the first are guided; 0 = all.
    rope_scaling: how positions stretch beyond the trained size, a name of
      `backbone.rope.RULES`.
    scaling_watershed: time at which the rule "watershed" changes.
    proportional_attention: whether scores of self-attention grow with the
      picture.
    proportional_attn: the same, as diffusers calls it.
    rtol: relative error of dopri5.
    atol: absolute error likewise.
    diffusion: of the sde solvers, a name of `flow.sde.FORMS`.
    last_step: of the sde solvers, a name of `flow.sde.LAST`.
  """

  num_inference_steps: int | None
  solver: str | None
  schedule: str | Sequence[float] | None
  shift: float | None
  shift_tokens: int | None
  sigmas: Sequence[float] | None
  guidance_interval: tuple[float, float] | None
  guidance_renorm: float | None
  guidance_channels: int | None
  rope_scaling: str | None
  scaling_watershed: float | None
  proportional_attention: bool | None
  proportional_attn: bool | None
  rtol: float | None
  atol: float | None
  diffusion: str | None
  last_step: str | None


# What SamplingConfig.beyond calls them.
OF_BEYOND = {
  "rope_scaling": "rule",
  "scaling_watershed": "watershed",
  "proportional_attention": "proportional",
  "proportional_attn": "proportional",
}
WHOLE = ("num_inference_steps", "shift_tokens", "guidance_channels")
NUMBERS = ("shift", "guidance_renorm", "rtol", "atol", "scaling_watershed")
TRUTHS = ("proportional_attention", "proportional_attn")


def choose(
  sampling: SamplingConfig,
  compatibility: str | None,
  scheduler: Mapping[str, Any],
  how: How,
) -> SamplingConfig:
  """What one call samples with; times that it brings are left to `time_grid`.

  Args:
    sampling: defaults of the pipeline.
    compatibility: name of a preset that stands above them, or None.
    scheduler: what a diffusers folder says of its times.
    how: above all.

  Raises:
    TypeError: for an argument that there is none of.
    ValueError: for unknown names, values out of range, and arguments that what
      was chosen beside them does not read.
  """
  for name in how.keys() - How.__annotations__.keys():
    near = difflib.get_close_matches(name, How.__annotations__, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise TypeError(f"unexpected argument {name!r}{hint}")
  if compatibility is not None:
    sampling = preset(compatibility, sampling, scheduler)
  said = _checked({name: x for name, x in how.items() if x is not None})
  changes = said.copy()
  changes.pop("sigmas", None)
  if not isinstance(changes.get("schedule", ""), str):
    del changes["schedule"]
  beyond = _beyond(sampling.beyond, changes)
  sampling = dataclasses.replace(sampling, beyond=beyond, **changes)
  _check_read(sampling, said)
  return sampling


def _checked(said: dict[str, Any]) -> dict[str, Any]:
  """Numbers, truth values and pairs as such."""
  for name, value in said.items():
    if isinstance(value, bool) != (name in TRUTHS):
      wanted = "True or False" if name in TRUTHS else "neither True nor False"
      raise ValueError(f"{name} = {value!r}: {wanted}")
    if name in WHOLE:
      said[name] = inputs.whole(value, name)
    if name in NUMBERS:
      said[name] = inputs.number(value, name)
  if "guidance_interval" in said:
    said["guidance_interval"] = inputs.interval(
      said["guidance_interval"], "guidance_interval"
    )
  if set(TRUTHS) <= said.keys():
    raise ValueError(f"{' and '.join(TRUTHS)} are the same: give one")
  return said


def _beyond(
  own: Extrapolation | None, changes: dict[str, Any]
) -> Extrapolation | None:
  """Takes what concerns sizes beyond training out of the changes."""
  found = {name: changes.pop(name) for name in OF_BEYOND if name in changes}
  if own is not None:
    fields = {OF_BEYOND[name]: value for name, value in found.items()}
    return dataclasses.replace(own, **fields)
  if any(x is not False and x != "none" for x in found.values()):
    raise ValueError(
      f"{', '.join(found)}: this pipeline has no rule for sizes beyond those "
      "of training"
    )
  return None


def _check_read(sampling: SamplingConfig, said: Mapping[str, Any]) -> None:
  """Raises ValueError for what the solver or the rule takes no notice of."""
  rule = sampling.beyond and sampling.beyond.rule
  adaptive = sampling.solver == "dopri5"
  noisy = isinstance(sampling.method, Stochastic)
  readers = {
    "rtol": (adaptive, "solver='dopri5'"),
    "atol": (adaptive, "solver='dopri5'"),
    "diffusion": (noisy, "solver='sde_euler' or 'sde_heun'"),
    "last_step": (noisy, "solver='sde_euler' or 'sde_heun'"),
    "scaling_watershed": (rule == "watershed", "rope_scaling='watershed'"),
  }
  for name, (read, by) in readers.items():
    if name in said and not read:
      raise ValueError(f"{name} = {said[name]!r} is read with {by} only")
  times = said.get("schedule", "")
  if not isinstance(times, str) and "shift" in said:
    raise ValueError(
      f"shift = {said['shift']}: times that schedule brings are not shifted"
    )
  # Whether they are times or levels at all is looked at where they are read.
  levels = np.size(said.get("sigmas", ()))
  steps = levels if isinstance(times, str) else np.size(times) - 1
  asked = said.get("num_inference_steps", steps)
  if steps and asked != steps:
    raise ValueError(
      f"num_inference_steps = {asked}, but schedule or sigmas has {steps} "
      "steps: leave one of them out"
    )


def preset(
  name: str, sampling: SamplingConfig, scheduler: Mapping[str, Any]
) -> SamplingConfig:
  """How another program samples with the same weights.

  "diffusers" is its LuminaPipeline: Euler steps on its scheduler's times, three
  guided channels, and positions stretched linearly at every size and time.

  Raises:
    ValueError: for an unknown name, or a scheduler that does more than shift.
  """
  check_name("compatibility", name, PRESETS)
  found = scheduler.get("_class_name", SCHEDULER_CLASS)
  if found != SCHEDULER_CLASS:
    raise ValueError(
      f"the scheduler of this pipeline is a {found}; the preset knows "
      f"{SCHEDULER_CLASS}"
    )
  for key, known in SCHEDULER.items():
    if (scheduler.get(key, known) or None) != (known or None):
      raise ValueError(
        f"the scheduler of this pipeline has {key} = {scheduler[key]!r}, which "
        "the preset does not know; pass its levels as sigmas= without "
        "compatibility="
      )
  beyond = sampling.beyond
  if beyond is not None:
    side = beyond.side
    beyond = Extrapolation(
      rule="watershed",
      side=side,
      base_tokens=(side // 2) ** 2,  # It counts patches of two.
      watershed=1.0,
      below=True,
    )
  return dataclasses.replace(
    sampling,
    solver="euler",
    num_inference_steps=30,
    guidance_scale=4.0,
    shift=float(scheduler.get("shift", 1.0)),
    guidance_channels=3,
    schedule=DIFFUSERS,
    shift_tokens=0,
    guidance_interval=(0.0, 1.0),
    guidance_renorm=0.0,
    beyond=beyond,
  )
