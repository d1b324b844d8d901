"""The original's settings.yaml: options of sampling under its names.

The file is a list of one mapping with the sections model, transport, ode and
infer. Values that it leaves out are None: the pipeline's defaults apply.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lumina_jax.files.suggest import did_you_mean
from lumina_jax.flow import solvers
from lumina_jax.sampling.options import ADAPTIVE as TOLERANT
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig

# Adaptive solvers of the original beside dopri5.
ADAPTIVE = ("dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# Names of torchdiffeq, and so of the original, for our solvers.
SOLVER_NAMES = {"rk4": "rk4_38", "heun2": "heun"}
TIME_AWARE, NO_SCALING = "Time-aware", "None"
METHODS = (TIME_AWARE, NO_SCALING)
TOLERANCES = {"atol": 1e-6, "rtol": 1e-3}  # Those of the original's file.
# Settings that concern sizes beyond training, by the rule that reads them.
SCALING = {
  "ntk_plain": ("ntk_scaling",),
  "watershed": ("scaling_method", "scaling_watershed"),
}
# Sections and keys of the original.
SECTIONS = {
  "model": "ckpt ckpt_lm token",
  "transport": "path_type prediction loss_weight sample_eps train_eps",
  "ode": "atol rtol reverse likelihood",
  "sde": (
    "sampling_method diffusion_form diffusion_norm last_step last_step_size"
  ),
  "infer": (
    "resolution num_sampling_steps cfg_scale solver t_shift seed "
    "proportional_attn ntk_scaling scaling_method scaling_watershed"
  ),
}
KEYS = [f"{s}.{key}" for s, keys in SECTIONS.items() for key in keys.split()]
RENAMED = {"scale_watershed": "scaling_watershed"}
NONE_IS_A_CHOICE = ("scaling_method", "loss_weight", "last_step")
# Settings with a single supported value, and the reason.
ONLY = {
  "transport.path_type": ("Linear", "published networks use this path"),
  "transport.prediction": ("velocity", "published networks predict it"),
  "ode.reverse": (False, "sampling runs from noise to data"),
  "ode.likelihood": (False, "sampling computes no likelihood"),
}
RESOLUTION = re.compile(r"(?:\d+\s*:|\(\w+\))?\s*(\d+)\s*[xX×]\s*(\d+)")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings by the original's names; None = the pipeline's default.

  Attributes:
    ckpt: folder or hub name of a pipeline.
    ckpt_lm: folder or hub name of its text encoder.
    token: for gated repositories of the hub.
    resolution: (width, height) in pixels, in the original's order.
    num_sampling_steps: points of the time grid, one more than its steps.
    cfg_scale: guidance scale.
    solver: a name of `solvers.SOLVERS`.
    t_shift: shift of the time grid.
    seed: of the noise; 0 is a seed like any other.
    proportional_attn: whether scores of attention scale with the size.
    ntk_scaling: whether a Flag-DiT stretches positions beyond trained sizes.
    scaling_method: rule of a Next-DiT, "Time-aware" or "None".
    scaling_watershed: time at which the time-aware rule changes.
    atol: absolute error that dopri5 allows in a step.
    rtol: relative error that dopri5 allows in a step.
  """

  ckpt: str | None = None
  ckpt_lm: str | None = None
  token: str | None = dataclasses.field(default=None, repr=False)
  resolution: tuple[int, int] | None = None
  num_sampling_steps: int | None = None
  cfg_scale: float | None = None
  solver: str | None = None
  t_shift: float | None = None
  seed: int | None = None
  proportional_attn: bool | None = None
  ntk_scaling: bool | None = None
  scaling_method: str | None = None
  scaling_watershed: float | None = None
  atol: float | None = None
  rtol: float | None = None

  def __post_init__(self):
    if self.solver in ADAPTIVE:
      raise ValueError(
        f"solver {self.solver!r} is not available; use dopri5, which also "
        "adapts its steps, or midpoint (the original's advice, 20 points)"
      )
    if self.solver is not None:
      solvers.solver(self.solver)
    points = self.num_sampling_steps
    if points is not None and points < 2:
      raise ValueError(
        f"num_sampling_steps = {points}: N points of time are N - 1 steps; use "
        "at least 2"
      )
    if self.scaling_method not in (None, *METHODS):
      raise ValueError(
        f"scaling_method {self.scaling_method!r}: use {' or '.join(METHODS)}"
      )
    watershed = self.scaling_watershed
    if watershed is not None and not 0 <= watershed <= 1:
      raise ValueError(
        f"scaling_watershed = {watershed}: must be a time from 0 to 1"
      )

  @property
  def num_inference_steps(self) -> int | None:
    """Integration steps, one fewer than points."""
    points = self.num_sampling_steps
    return None if points is None else points - 1

  def option_values(
    self, defaults: SamplingOptions, sizes: SizeConfig, flags: Mapping[str, Any]
  ) -> tuple[dict[str, Any], list[str]]:
    """Sampling options, and remarks on settings that have no effect.

    A settings file often belongs to another network, so settings without
    effect are no errors.

    Args:
      defaults: options of the pipeline.
      sizes: of the pipeline.
      flags: options that flags set; they override the settings.
    """
    rule = flags.get("rope_scaling", defaults.rope_scaling)
    useful = SCALING.get(rule, ())
    useful += ("proportional_attn",) if sizes.known else ()
    scaling = (*sum(SCALING.values(), ()), "proportional_attn")
    given = [name for name in scaling if getattr(self, name) is not None]
    remarks = []
    if unused := [name for name in given if name not in useful]:
      remarks.append(
        f"{', '.join(unused)}: this network has no such rule for sizes beyond "
        "those of training; not used"
      )
    values = {
      "num_inference_steps": self.num_inference_steps,
      "guidance_scale": self.cfg_scale,
      "solver": self.solver,
      "shift": self.t_shift,
    }
    if sizes.known:
      values["proportional_attention"] = self.proportional_attn
    off = self.ntk_scaling is False, self.scaling_method == NO_SCALING
    switches = "ntk_scaling", "scaling_method"
    if any(o and s in useful for o, s in zip(off, switches, strict=True)):
      values["rope_scaling"] = flags.get("rope_scaling", "none")
    elif "scaling_watershed" in useful:
      values["scaling_watershed"] = self.scaling_watershed
    solver = flags.get("solver", self.solver or defaults.solver)
    tolerances = {name: getattr(self, name) for name in TOLERANCES}
    if solver in TOLERANT:
      values |= tolerances
    elif any(tolerances[k] not in (None, v) for k, v in TOLERANCES.items()):
      named = [f"ode.{k}" for k, v in tolerances.items() if v is not None]
      remarks.append(
        f"{', '.join(named)}: solvers with fixed steps have no tolerance; not "
        "used"
      )
    values = {k: v for k, v in values.items() if v is not None}
    return values | dict(flags), remarks


def read(path: str | os.PathLike) -> tuple[Settings, list[str]]:
  """Reads a settings.yaml.

  Returns:
    The settings, and remarks for the user.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is not a settings file, or a value is not supported.
  """
  try:
    text = pathlib.Path(path).expanduser().read_text("utf-8")
  except OSError as error:
    raise OSError(
      f"settings {path} cannot be read: {error.strerror}; name the file with "
      "-c, or leave it out and use flags"
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text: {error}") from error
  try:
    values = yaml.safe_load(text)
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {error}") from error
  try:
    return parse(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def parse(values: Any) -> tuple[Settings, list[str]]:
  """Settings from the content of a YAML file.

  Returns:
    The settings, and remarks on tolerated mistakes.

  Raises:
    ValueError: naming an unsupported value, and the alternative.
  """
  remarks: list[str] = []
  found: dict[str, Any] = {}
  for name, value in _entries(_mapping(values, remarks), remarks):
    if name in found and found[name] != value:
      raise ValueError(f"{name} is given twice, {found[name]} and {value}")
    found[name] = value
  texts = [name for name, x in found.items() if _number_as_text(name, x)]
  if texts:
    remarks.append(
      f"{', '.join(texts)}: text is read as a number (YAML wants 1.0e-6, "
      "not 1e-6)"
    )
  for name, (only, reason) in ONLY.items():
    value = found.get(name, only)
    if isinstance(only, bool):
      value = truth(name, value)
    if value != only:
      allowed = str(only).lower() if isinstance(only, bool) else only
      raise ValueError(
        f"{name} = {value}: {reason}; write {allowed}, or remove the line"
      )
  fields = {}
  for name, value in found.items():
    section, _, key = name.partition(".")
    if section in ("model", "infer") or key in TOLERANCES:
      fields[key] = KINDS[key](name, value)
  solver = fields.get("solver")
  if solver in SOLVER_NAMES:
    fields["solver"] = SOLVER_NAMES[solver]
  return Settings(**fields), remarks


def resolution(name: str, value: Any) -> tuple[int, int]:
  """(width, height) of "1024x512", "1024:1536x1024", "(Extrapolation) 8x8".

  Raises:
    ValueError: for any other text.
  """
  match = RESOLUTION.fullmatch(str(value).strip())
  if not match:
    raise ValueError(
      f"{name} = {value}: write width and height in pixels, as 1024x512"
    )
  return int(match[1]), int(match[2])


def number(name: str, value: Any) -> float:
  """A number; PyYAML reads 1e-6 as text."""
  try:
    if isinstance(value, bool):
      raise ValueError
    return float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} = {value!r}: expected a number") from error


def whole(name: str, value: Any) -> int:
  """A whole number; text and 4.0 pass."""
  found = number(name, value)
  if not found.is_integer():
    raise ValueError(f"{name} = {value!r}: expected a whole number")
  return int(found)


def truth(name: str, value: Any) -> bool:
  """A truth value; text passes."""
  known = {"true": True, "false": False}
  if str(value).lower() not in known:
    raise ValueError(f"{name} = {value!r}: expected true or false")
  return known[str(value).lower()]


def words(name: str, value: Any) -> str:
  """Text."""
  if not isinstance(value, str):
    raise ValueError(f"{name} = {value!r}: expected text")
  return value


KINDS = {
  **dict.fromkeys(("ckpt", "ckpt_lm", "token", "solver"), words),
  **dict.fromkeys(("cfg_scale", "t_shift", "scaling_watershed"), number),
  **dict.fromkeys(TOLERANCES, number),
  **dict.fromkeys(("num_sampling_steps", "seed"), whole),
  **dict.fromkeys(("proportional_attn", "ntk_scaling"), truth),
  "scaling_method": words,
  "resolution": resolution,
}


def _mapping(values: Any, remarks: list[str]) -> Mapping[str, Any]:
  """The only mapping of the list."""
  if isinstance(values, Mapping):
    remarks.append("a mapping is read as the list of one that it should be")
    values = [values]
  if not isinstance(values, list) or not values:
    raise ValueError(
      "expected a list of one mapping with the sections "
      f"{', '.join(SECTIONS)}, found {values!r}"
    )
  if len(values) > 1:
    remarks.append(f"a list of {len(values)}: only the first is read")
  if not isinstance(values[0], Mapping):
    raise ValueError(f"expected sections of keys, found {values[0]!r}")
  rest = dict(values[0])
  # The heading may hold the sections, which then are indented below it.
  within = rest.pop("settings", None)
  return rest | within if isinstance(within, Mapping) else rest


def _entries(
  sections: Mapping[str, Any], remarks: list[str]
) -> Iterator[tuple[str, Any]]:
  """("section.key", value) of all known keys with a value."""
  for section, entries in sections.items():
    if section not in SECTIONS:
      remarks.append(_unknown(str(section), list(SECTIONS)))
      continue
    if entries is not None and not isinstance(entries, Mapping):
      raise ValueError(f"{section} = {entries!r}: expected keys with values")
    for key, value in (entries or {}).items():
      name = f"{section}.{RENAMED.get(key, key)}"
      if name not in KEYS:
        remarks.append(_unknown(f"{section}.{key}", KEYS))
        continue
      if key in RENAMED:
        remarks.append(f"{section}.{key} is read as {name}")
      if name == "infer.scaling_method" and value is None:
        value = NO_SCALING
      if value == "None" and not name.endswith(NONE_IS_A_CHOICE):
        remarks.append(f"{name}: None is read as not given (YAML writes null)")
        value = None
      if value is not None and value != "":
        yield name, value


def _unknown(name: str, known: list[str]) -> str:
  own = name.rpartition(".")[2]
  elsewhere = [other for other in known if other.rpartition(".")[2] == own]
  hint = did_you_mean(name, known)
  if elsewhere:
    hint = f"; did you mean {elsewhere[0]!r}?"
  return f"{name} is unknown and not used{hint}"


def _number_as_text(name: str, value: Any) -> bool:
  key = name.rpartition(".")[2]
  numeric = KINDS.get(key) in (number, whole) or key in TOLERANCES
  return numeric and isinstance(value, str)
