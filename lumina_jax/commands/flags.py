"""Flags of the sampling command, derived from options and media."""

import dataclasses
import re
import typing
from typing import Any

from absl import flags

from lumina_jax.media import MEDIA
from lumina_jax.media.medium import Axis
from lumina_jax.sampling import overrides
from lumina_jax.sampling.options import SamplingOptions

flags.disclaim_key_flags()  # --help of a command lists them as its own.

NUMBER = re.compile(r"[-+.\d]")  # How a number begins.
EACH = "Once, or once for each prompt."


class OptionParser(flags.ArgumentParser):
  """Parses the text of a flag as the type of an option.

  Numbers of a tuple are separated by commas.
  """

  def __init__(self, kind: Any, name: str):
    self._kind, self._name = kind, name
    self.syntactic_help = ""

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):
      return argument
    kind = self._kind
    if _takes_tuple(kind) and NUMBER.match(argument):
      argument = [part for part in argument.split(",") if part.strip()]
    return overrides.convert(kind, argument, f"--{self._name}")

  def flag_type(self) -> str:
    return getattr(self._kind, "__name__", str(self._kind))


def define_options(
  cls: type = SamplingOptions, values: flags.FlagValues = flags.FLAGS
) -> None:
  """Defines a flag for every option; `--group.field` for those of a group."""
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    group = group_type(hints[field.name])
    if group is None:
      _define(field, hints[field.name], field.name, values)
      continue
    inner = typing.get_type_hints(group)
    for part in dataclasses.fields(group):
      name = f"{field.name}.{part.name}"
      _define(part, inner[part.name], name, values)


def option_values(
  cls: type = SamplingOptions, values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
  """Options whose flags were given, by name.

  A per-sample option is a list, a group a dict of the fields that were given.
  """
  hints, found = typing.get_type_hints(cls), {}
  for field in dataclasses.fields(cls):
    group = group_type(hints[field.name])
    if group is None:
      value = values[field.name].value
      if value is not None:
        found[field.name] = value
      continue
    given = {
      part.name: values[f"{field.name}.{part.name}"].value
      for part in dataclasses.fields(group)
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given:
      found[field.name] = given
  return found


def group_type(kind: Any) -> type | None:
  """The dataclass of an option that is a group; None for plain options."""
  members = typing.get_args(kind) or (kind,)
  return next((m for m in members if dataclasses.is_dataclass(m)), None)


def axes() -> dict[str, Axis]:
  """Axes of all media by the argument that sets their size."""
  return {axis.argument: axis for m in MEDIA.values() for axis in m.axes}


def define_sizes(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines a flag for every axis of every medium."""
  for axis in axes().values():
    define = flags.DEFINE_multi_integer
    if axis.unit == "seconds":
      define = flags.DEFINE_multi_float
    text = f"{axis.help} {EACH}"
    define(axis.argument, None, text, flag_values=values)


def size_values(values: flags.FlagValues = flags.FLAGS) -> dict[str, list[Any]]:
  """Sizes that were given, by axis."""
  found = {name: values[name].value for name in axes()}
  return {name: value for name, value in found.items() if value is not None}


def _define(
  field: dataclasses.Field, kind: Any, name: str, values: flags.FlagValues
) -> None:
  text = field.metadata.get("help", "")
  if kind is bool:
    flags.DEFINE_bool(name, None, text, flag_values=values)
  elif field.metadata.get("per_sample"):
    flags.DEFINE_multi(
      OptionParser(kind, name),
      flags.ArgumentSerializer(),
      name,
      None,
      f"{text} {EACH}",
      flag_values=values,
    )
  else:
    serializer = flags.ArgumentSerializer()
    flags.DEFINE(OptionParser(kind, name), name, None, text, values, serializer)
  if alias := field.metadata.get("alias"):
    flags.DEFINE_alias(alias, name, flag_values=values)


def _takes_tuple(kind: Any) -> bool:
  members = (kind, *typing.get_args(kind))
  return any(typing.get_origin(member) is tuple for member in members)
