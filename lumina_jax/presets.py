"""How a call samples: defaults, a preset above them, what the caller says."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lumina_jax import inputs
from lumina_jax.extrapolation import Extrapolation
from lumina_jax.flow import schedule
from lumina_jax.sampler import SamplingConfig

DIFFUSERS = "diffusers"
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


def choose(
  sampling: SamplingConfig,
  compatibility: str | None,
  scheduler: Mapping[str, Any],
  changes: Mapping[str, Any],
) -> SamplingConfig:
  """What one call samples with.

  Args:
    sampling: defaults of the pipeline.
    compatibility: name of a preset that stands above them, or None.
    scheduler: what a diffusers folder says of its times.
    changes: by field of SamplingConfig or `Extrapolation`, above all; None =
      not changed.

  Raises:
    ValueError: for unknown names and values out of range.
  """
  if compatibility is not None:
    sampling = preset(compatibility, sampling, scheduler)
  changes = {name: x for name, x in changes.items() if x is not None}
  for name in changes.keys() & {"num_inference_steps"}:
    changes[name] = inputs.whole(changes[name], name)
  for name in changes.keys() & {"watershed"}:
    changes[name] = inputs.number(changes[name], name)
  names = {field.name for field in dataclasses.fields(Extrapolation)}
  beyond = {name: changes.pop(name) for name in names & changes.keys()}
  if beyond:
    if sampling.beyond is None:
      raise ValueError(
        f"{', '.join(sorted(beyond))}: this pipeline has no rule for sizes "
        "beyond those of training"
      )
    changes["beyond"] = dataclasses.replace(sampling.beyond, **beyond)
  return dataclasses.replace(sampling, **changes)


def preset(
  name: str, sampling: SamplingConfig, scheduler: Mapping[str, Any]
) -> SamplingConfig:
  """How another program samples with the same weights.

  "diffusers" is its LuminaPipeline: Euler steps on its scheduler's times, three
  guided channels, and positions stretched linearly at every size and time.

  Raises:
    ValueError: for an unknown name, or a scheduler that does more than shift.
  """
  if name not in PRESETS:
    near = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
      f"compatibility {name!r}: {hint}there is {', '.join(PRESETS)}"
    )
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
    grid="diffusers",
    beyond=beyond,
  )


def times(
  sampling: SamplingConfig, sigmas: Sequence[float] | None = None
) -> jax.Array:
  """Times from noise to data, `f32[steps + 1]`.

  Args:
    sampling: its grid, steps and shift.
    sigmas: noise levels, falling from at most 1, in place of the grid.

  Raises:
    ValueError: if the levels do not fall within (0, 1].
  """
  if sigmas is not None:
    levels = [float(level) for level in sigmas]
    falling = sorted(set(levels), reverse=True) == levels
    if not levels or not falling or not 0 < levels[-1] <= levels[0] <= 1:
      raise ValueError(f"sigmas {levels}: noise levels falling from 1, above 0")
    grid = 1 - jnp.asarray([*levels, 0.0], jnp.float32)
    return schedule.shift(grid, sampling.shift)
  if sampling.grid == "diffusers":
    return schedule.diffusers(sampling.num_inference_steps, sampling.shift)
  grid = schedule.uniform(sampling.num_inference_steps)
  return schedule.shift(grid, sampling.shift)
