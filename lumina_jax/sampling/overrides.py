"""Overrides: options of a call above the defaults of a pipeline.

These functions read the fields of any class of options, so that an option is
declared in one place only.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lumina_jax.files import numbers, schema
from lumina_jax.sampling import arguments
from lumina_jax.sampling.options import SamplingOptions

Options = TypeVar("Options")


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
    values: by keyword; None = the default. A group may be a mapping of some of
      its fields. Lists of a per-sample option are left to `per_sample`.

  Raises:
    ValueError: for a value that does not fit, or that has no effect beside the
      others.
  """
  changes, hints = {}, typing.get_type_hints(type(options))
  for field in dataclasses.fields(options):
    name, value = field.name, _value(field, values)
    several = field.metadata["per_sample"] and arguments.is_list(value)
    if value is not None and not several:
      value = _with_defaults(value, getattr(options, name))
      changes[name] = convert(hints[name], value, name)
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
    if not arguments.is_list(value):
      raise ValueError(f"{name} = {value!r}: must be a list of numbers")
    return schema.typed(kind, [numbers.number(x, name) for x in value], name)
  if origin is None and kind in (int, float):
    return (numbers.whole if kind is int else numbers.number)(value, name)
  if origin is None:
    return schema.typed(kind, value, name)
  # A union: text stays text, the rest is of the last other type.
  others = [arg for arg in args if arg not in (str, type(None))]
  text = str in args and (isinstance(value, str) or not others)
  return convert(str if text else others[-1], value, name)


def _value(field: dataclasses.Field, values: Mapping[str, Any]) -> Any:
  alias = field.metadata["alias"]
  value, other = values.get(field.name), values.get(alias)
  if value is not None and other is not None:
    raise ValueError(f"{field.name} and {alias} are the same: pass one of them")
  return other if value is None else value


def _with_defaults(value: Any, group: Any) -> Any:
  """Fields of a group above those of its default; other values as they are."""
  if isinstance(value, Mapping) and dataclasses.is_dataclass(group):
    return dataclasses.asdict(group) | value
  return value


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
  if "schedule" in changes and changes["sigmas"]:
    raise ValueError("schedule and sigmas: pass one of them")
  if not isinstance(changes.get("schedule", ""), str) and "shift" in changes:
    raise ValueError(
      f"shift = {options.shift} has no effect on explicit times in schedule"
    )
  steps = changes.get("num_inference_steps", options.steps)
  if steps != options.steps:
    raise ValueError(
      f"num_inference_steps = {steps}, but schedule or sigmas has "
      f"{options.steps} steps: leave one of them out"
    )
