"""SamplingOptions: how a call samples. Each option is declared once, here.

Keyword arguments of calls, flags of the command, the section `sampling` of
configs, and the metadata in files are all derived from these fields.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from lumina_jax.backbone.rope import RULES, check_rule
from lumina_jax.files import schema
from lumina_jax.flow import schedule as schedules
from lumina_jax.flow import sde, solvers
from lumina_jax.sampling import arguments

Options = TypeVar("Options")

ADAPTIVE = ("dopri5",)
STOCHASTIC = ("sde_euler", "sde_heun")


def option(
  help: str,
  default: Any = dataclasses.MISSING,
  *,
  per_sample: bool = False,
  alias: str | None = None,
  needs: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
  """A field of options.

  Args:
    help: describes the option, for docs and `--help`.
    default: of the config; without one every config must set the field.
    per_sample: whether calls may pass one value for each prompt.
    alias: another keyword for the option.
    needs: values of another option without which this one has no effect.
  """
  metadata = dict(
    help=help, per_sample=per_sample, alias=alias, needs=needs or {}
  )
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
  """How to sample; a call may override each field by a keyword argument.

  A field may be a group: a frozen dataclass, whose fields are flags such as
  `--group.field`. Groups are static: other values compile another program.

  Raises:
    ValueError: for a value out of range.
  """

  solver: str = option(f"Integrator: {', '.join(solvers.SOLVERS)}.")
  num_inference_steps: int = option(
    "Integration steps. Each costs one evaluation of the network for every "
    "stage of the solver; guidance doubles that. dopri5 chooses its own steps."
  )
  guidance_scale: float = option(
    "Scale of classifier-free guidance; 1 = none, at half the cost.",
    per_sample=True,
  )
  shift: float = option(
    "Shift of the time grid; above 1 spends more steps near noise."
  )
  strength: float = option(
    "Denoising strength with an initial image, above 0 and at most 1: the "
    "share of the steps that run.",
    0.6,
  )
  schedule: str | tuple[float, ...] = option(
    f"Time grid: {', '.join(schedules.SCHEDULES)} or {schedules.DIFFUSERS}; or "
    "times from 0 (noise) to 1 (data), which are not shifted.",
    "uniform",
  )
  shift_tokens: int = option(
    "Tokens for which the shift is meant; it grows with the root of a sample's "
    "tokens. 0 = the same shift for all sizes.",
    0,
  )
  sigmas: tuple[float, ...] = option(
    "Noise levels to step through in place of a schedule, falling from 1; the "
    "last step leads to 0.",
    (),
  )
  guidance_interval: tuple[float, float] = option(
    "Times, from 0 (noise) to 1 (data), between which guidance acts.",
    (0.0, 1.0),
  )
  guidance_renorm: float = option(
    "Longest guided velocity, in lengths of the conditional one; 0 = any.", 0.0
  )
  guidance_channels: int = option(
    "Number of first channels that are guided; 0 = all. The original guides 3 "
    "of 4.",
    0,
  )
  rope_scaling: str = option(
    f"How positions stretch beyond the trained size: {', '.join(RULES)}.",
    "none",
  )
  scaling_watershed: float = option(
    "Time at which rope_scaling watershed changes from linear to NTK.",
    0.3,
    needs={"rope_scaling": ("watershed",)},
  )
  proportional_attention: bool = option(
    "Scale scores of self-attention by the size of the sample (Lumina-Next, "
    "section 2.1).",
    False,
    alias="proportional_attn",
  )
  rtol: float = option(
    "Relative error that dopri5 allows in a step.",
    1e-3,
    needs={"solver": ADAPTIVE},
  )
  atol: float = option(
    "Absolute error that dopri5 allows in a step, in units of the latents.",
    1e-6,
    needs={"solver": ADAPTIVE},
  )
  diffusion: str = option(
    f"Diffusion of the sde solvers: {', '.join(sde.FORMS)}.",
    "sigma",
    needs={"solver": STOCHASTIC},
  )
  last_step: str = option(
    f"Last step of the sde solvers: {', '.join(sde.LAST)}.",
    "tweedie",
    needs={"solver": STOCHASTIC},
  )

  def __post_init__(self):
    for name in (self.solver, *ADAPTIVE, *STOCHASTIC):
      configured_solver(self, name)  # Any of them may be chosen by a call.
    check_rule(self.rope_scaling)
    if isinstance(self.schedule, str) and self.schedule != schedules.DIFFUSERS:
      schedules.find(self.schedule)
    start, stop = self.guidance_interval
    checks = {
      "num_inference_steps": (self.num_inference_steps >= 1, "at least 1"),
      "guidance_scale": (math.isfinite(self.guidance_scale), "a finite number"),
      "shift": (0 < self.shift < math.inf, "positive and finite"),
      "strength": (
        0 < self.strength <= 1,
        "above 0 (keeps the image) and at most 1 (ignores it)",
      ),
      "shift_tokens": (self.shift_tokens >= 0, "0 for all sizes, or positive"),
      "guidance_interval": (
        0 <= start < stop <= 1,
        "two times from 0 (noise) to 1 (data), the first below the second",
      ),
      "guidance_renorm": (
        0 <= self.guidance_renorm < math.inf,
        "0 for any length, or positive",
      ),
      "guidance_channels": (
        self.guidance_channels >= 0,
        "0 for all channels, or positive",
      ),
      "scaling_watershed": (
        0 <= self.scaling_watershed <= 1,
        "a time from 0 (noise) to 1 (data)",
      ),
    }
    for name, (valid, wanted) in checks.items():
      if not valid:
        raise ValueError(f"{name} = {getattr(self, name)}: must be {wanted}")

  @property
  def steps(self) -> int:
    """Integration steps of a whole solve, explicit times considered."""
    if self.sigmas:
      return len(self.sigmas)
    if not isinstance(self.schedule, str):
      return len(self.schedule) - 1
    return self.num_inference_steps


def configured_solver(options: SamplingOptions, name: str = "") -> Any:
  """The solver of that name, default its own, configured by the options."""
  return solvers.configured(
    name or options.solver,
    rtol=options.rtol,
    atol=options.atol,
    form=options.diffusion,
    last=options.last_step,
  )


def names(cls: type = SamplingOptions) -> list[str]:
  """Keywords of all options, aliases included."""
  aliases = [field.metadata["alias"] for field in dataclasses.fields(cls)]
  return [f.name for f in dataclasses.fields(cls)] + [a for a in aliases if a]


def groups(options: Any) -> tuple[Any, ...]:
  """The groups of options that are set, in order: static, hashable."""
  values = (getattr(options, f.name) for f in dataclasses.fields(options))
  return tuple(value for value in values if dataclasses.is_dataclass(value))


def override(options: Options, values: Mapping[str, Any]) -> Options:
  """Options with those of a call above them.

  Args:
    options: defaults.
    values: by keyword; None = the default. Lists of a per-sample option are
      left to `per_sample`.

  Raises:
    ValueError: for a value that does not fit, or that has no effect beside the
      others.
  """
  changes = {}
  for field in dataclasses.fields(options):
    value = _value(field, values)
    if value is None or (field.metadata["per_sample"] and _is_list(value)):
      continue
    kind = typing.get_type_hints(type(options))[field.name]
    changes[field.name] = convert(kind, value, field.name)
  if "schedule" in changes and "sigmas" not in changes:
    changes["sigmas"] = ()  # The schedule of a call replaces default sigmas.
  options = dataclasses.replace(options, **changes)
  for field in dataclasses.fields(options):
    if field.name in changes:
      _check_effect(options, field)
  _check_times(options, changes)
  return options


def per_sample(
  options: Any, values: Mapping[str, Any], count: int
) -> dict[str, list[Any]]:
  """Options that may differ between prompts, a value for each.

  Args:
    options: of the call.
    values: by keyword, as for `override`.
    count: number of prompts.
  """
  found = {}
  for field in dataclasses.fields(options):
    if field.metadata["per_sample"]:
      value = _value(field, values)
      value = getattr(options, field.name) if value is None else value
      kind = typing.get_type_hints(type(options))[field.name]
      found[field.name] = [
        convert(kind, one, field.name)
        for one in arguments.per_prompt(value, count, field.name)
      ]
  return found


def convert(kind: Any, value: Any, name: str) -> Any:
  """A value of a caller as the type of an option.

  Raises:
    ValueError: if it is of another kind.
  """
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return value if isinstance(value, kind) else schema.parse(kind, value, name)
  if origin is tuple:
    return _numbers(value, None if args[-1] is ... else len(args), name)
  if origin is None and kind in (int, float):
    if isinstance(value, (bool, np.bool_)):
      raise ValueError(f"{name} = {value!r}: must be a number")
    check = arguments.whole if kind is int else arguments.number
    return check(value, name)
  if origin is None:
    return schema.typed(kind, value, name)
  # A union: text stays text, the rest is of the last other type.
  others = [arg for arg in args if arg not in (str, type(None))]
  if str in args and isinstance(value, str):
    return value
  return convert(others[-1], value, name)


def _value(field: dataclasses.Field, values: Mapping[str, Any]) -> Any:
  alias = field.metadata["alias"]
  value, other = values.get(field.name), values.get(alias)
  if value is not None and other is not None:
    raise ValueError(f"{field.name} and {alias} are the same: pass one of them")
  return other if value is None else value


def _check_effect(options: Any, field: dataclasses.Field) -> None:
  for name, useful in field.metadata["needs"].items():
    chosen = getattr(options, name)
    if chosen not in useful:
      wanted = " or ".join(map(repr, useful))
      raise ValueError(
        f"{field.name} = {getattr(options, field.name)!r} has no effect with "
        f"{name} = {chosen!r}; it needs {name} = {wanted}"
      )


def _check_times(options: SamplingOptions, changes: Mapping[str, Any]) -> None:
  """Refuses explicit times beside other options that would change them."""
  schedule = changes.get("schedule", "")
  if not isinstance(schedule, str):
    if changes["sigmas"]:
      raise ValueError("schedule and sigmas: pass one of them")
    if "shift" in changes:
      raise ValueError(
        f"shift = {options.shift} has no effect on explicit times in schedule"
      )
  steps = changes.get("num_inference_steps", options.steps)
  if steps != options.steps:
    raise ValueError(
      f"num_inference_steps = {steps}, but schedule or sigmas has "
      f"{options.steps} steps: leave one of them out"
    )


def _is_list(value: Any) -> bool:
  return isinstance(value, (list, tuple)) or np.ndim(value) > 0


def _numbers(value: Any, count: int | None, name: str) -> tuple[float, ...]:
  if isinstance(value, str) or not _is_list(value):
    wanted = "numbers" if count is None else f"{count} numbers"
    raise ValueError(f"{name} = {value!r}: must be {wanted}")
  found = tuple(arguments.number(x, name) for x in value)
  if count is not None and len(found) != count:
    raise ValueError(f"{name} = {value!r}: must be {count} numbers")
  return found
