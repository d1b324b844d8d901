"""What to sample with, in the words of the original's settings.yaml.

The file is a list of one mapping with the sections model, transport, ode and
infer. What is not said stays None: the pipeline then decides.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lumina_jax.flow import solvers

# Solvers of the original that choose their own steps, beside dopri5.
ADAPTIVE = ("dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# What torchdiffeq, and so the original, calls ours.
SOLVER_NAMES = {"rk4": "rk4_38", "heun2": "heun"}
TIME_AWARE, NO_SCALING = "Time-aware", "None"
METHODS = (TIME_AWARE, NO_SCALING)
TOLERANCES = {"atol": 1e-6, "rtol": 1e-3}  # As its file has them.
# Sections and keys that the original knows.
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
# What only one value is known of, and why.
ONLY = {
  "transport.path_type": ("Linear", "published networks know this path only"),
  "transport.prediction": ("velocity", "published networks predict it"),
  "ode.reverse": (False, "sampling runs from noise to data"),
  "ode.likelihood": (False, "pictures are drawn, not judged"),
}
RESOLUTION = re.compile(r"(?:\d+\s*:|\(\w+\))?\s*(\d+)\s*[xX×]\s*(\d+)")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings by the original's names; None = not said.

  Attributes:
    ckpt: folder or hub name of a pipeline.
    ckpt_lm: likewise of its text encoder.
    token: for gated repositories of the hub.
    resolution: (width, height) in pixels, in this order as the original.
    num_sampling_steps: points of the time grid, one more than there are steps.
    cfg_scale: guidance scale.
    solver: a name of `solvers.SOLVERS`.
    t_shift: of the time grid.
    seed: of the noise; 0 is a seed as any other.
    proportional_attn: whether scores of attention grow with the picture.
    ntk_scaling: whether a Flag-DiT stretches positions beyond trained sizes.
    scaling_method: likewise of a Next-DiT, "Time-aware" or "None".
    scaling_watershed: time at which the time-aware rule changes.
    atol: absolute error that dopri5 allows in a step.
    rtol: relative error likewise.
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
        f"solver {self.solver!r} chooses its own steps; of its kind there is "
        "dopri5 here. Use that, or midpoint (the original's advice, 20 points)"
      )
    if self.solver is not None:
      solvers.solver(self.solver)
    points = self.num_sampling_steps
    if points is not None and points < 2:
      raise ValueError(
        f"num_sampling_steps = {points}: it counts points of time, N points "
        "make N - 1 steps; give at least 2"
      )
    if self.scaling_method not in (None, *METHODS):
      raise ValueError(
        f"scaling_method {self.scaling_method!r}: use {' or '.join(METHODS)}"
      )
    watershed = self.scaling_watershed
    if watershed is not None and not 0 <= watershed <= 1:
      raise ValueError(f"scaling_watershed = {watershed}: a time from 0 to 1")

  @property
  def num_inference_steps(self) -> int | None:
    """Integration steps, one fewer than the points between which they lie."""
    points = self.num_sampling_steps
    return None if points is None else points - 1


def read(path: str | os.PathLike) -> tuple[Settings, list[str]]:
  """Reads a settings.yaml.

  Returns:
    What it says, and remarks for its author.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no such file, or asks for what cannot be done.
  """
  try:
    text = pathlib.Path(path).expanduser().read_text("utf-8")
  except OSError as error:
    raise OSError(
      f"settings {path} cannot be read: {error.strerror}; name the file with "
      "-c, or leave it out and use flags"
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no text: {error}") from error
  try:
    values = yaml.safe_load(text)
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {error}") from error
  try:
    return parse(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def parse(values: Any) -> tuple[Settings, list[str]]:
  """Settings from what a YAML file holds.

  Returns:
    The settings, and remarks on what was tolerated.

  Raises:
    ValueError: naming the value that cannot be served, and the way out.
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
    ValueError: if it is none of these.
  """
  match = RESOLUTION.fullmatch(str(value).strip())
  if not match:
    raise ValueError(
      f"{name} = {value}: write width and height in pixels, as 1024x512"
    )
  return int(match[1]), int(match[2])


def number(name: str, value: Any) -> float:
  """A number, also as text: PyYAML takes 1e-6 for text."""
  try:
    if isinstance(value, bool):
      raise ValueError
    return float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} = {value!r}: expected a number") from error


def whole(name: str, value: Any) -> int:
  """A whole number, also as text or as 4.0."""
  found = number(name, value)
  if not found.is_integer():
    raise ValueError(f"{name} = {value!r}: expected a whole number")
  return int(found)


def truth(name: str, value: Any) -> bool:
  """A truth value, also as text."""
  known = {"true": True, "false": False}
  if str(value).lower() not in known:
    raise ValueError(f"{name} = {value!r}: expected true or false")
  return known[str(value).lower()]


def words(name: str, value: Any) -> str:
  """A text."""
  if not isinstance(value, str):
    raise ValueError(f"{name} = {value!r}: expected a text")
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
  """The one mapping of the list that the file ought to be."""
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
  """("section.key", value) of what is known and said."""
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
  near = elsewhere or difflib.get_close_matches(name, known, n=1, cutoff=0)
  return f"{name} is unknown and not used; did you mean {near[0]}?"


def _number_as_text(name: str, value: Any) -> bool:
  key = name.rpartition(".")[2]
  numeric = KINDS.get(key) in (number, whole) or key in TOLERANCES
  return numeric and isinstance(value, str)
