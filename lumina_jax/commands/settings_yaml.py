"""The original's settings.yaml: options of sampling under its names.

The file is a list of one mapping with the sections model, transport, ode and
infer. Values that it leaves out are None: the pipeline's defaults apply.
"""

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lumina_jax.commands.settings import NO_SCALING, TOLERANCES, Settings
from lumina_jax.files import reading
from lumina_jax.files.suggest import did_you_mean
from lumina_jax.sampling.overrides import convert

# Names of torchdiffeq, and so of the original, for our solvers.
SOLVER_NAMES = {"rk4": "rk4_38", "heun2": "heun"}
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
HINTS = typing.get_type_hints(Settings)
RESOLUTION = re.compile(r"(?:\d+\s*:|\(\w+\))?\s*(\d+)\s*[xX×]\s*(\d+)")


def read(path: str) -> tuple[Settings, list[str]]:
  """Reads a settings.yaml.

  Returns:
    The settings, and remarks for the user.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is not a settings file, or a value is not supported.
  """
  text = reading.read_text(path, f"--config={path}")
  try:
    return parse(yaml.safe_load(text))
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {error}") from error
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
      value = truth(value, name)
    if value != only:
      allowed = str(only).lower() if isinstance(only, bool) else only
      raise ValueError(
        f"{name} = {value}: {reason}; write {allowed}, or remove the line"
      )
  fields = {}
  for name, value in found.items():
    section, _, key = name.partition(".")
    if section in ("model", "infer") or key in TOLERANCES:
      fields[key] = _value(value, name, key)
  solver = fields.get("solver")
  if solver in SOLVER_NAMES:
    fields["solver"] = SOLVER_NAMES[solver]
  return Settings(**fields), remarks


def resolution(value: Any, name: str) -> tuple[int, int]:
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


def truth(value: Any, name: str) -> bool:
  """A truth value; text passes."""
  known = {"true": True, "false": False}
  if str(value).lower() not in known:
    raise ValueError(f"{name} = {value!r}: expected true or false")
  return known[str(value).lower()]


def _value(value: Any, name: str, key: str) -> Any:
  """A value as the type of its field of `Settings`."""
  if key == "resolution":
    return resolution(value, name)
  if HINTS[key] == (bool | None):
    return truth(value, name)
  return convert(HINTS[key], value, name)


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
  numeric = HINTS.get(name.rpartition(".")[2]) in (int | None, float | None)
  return numeric and isinstance(value, str)
