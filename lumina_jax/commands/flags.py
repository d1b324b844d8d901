"""Flags of the sampling command, derived from options and media."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

from absl import flags

from lumina_jax.files import schema
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
  for name, field, kind in _fields(cls):
    _define(field, kind, name, values)


def option_values(
  cls: type = SamplingOptions, values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
  """Options whose flags were given, by name.

  A per-sample option is a list, a group a dict of the fields that were given.
  """
  found: dict[str, Any] = {}
  for name, _, _ in _fields(cls):
    if (value := values[name].value) is not None:
      group, _, key = name.rpartition(".")
      (found.setdefault(group, {}) if group else found)[key] = value
  return found


def axes() -> dict[str, Axis]:
  """Axes of all media by the argument that sets their size."""
  return {axis.argument: axis for m in MEDIA.values() for axis in m.axes}


def define_sizes() -> None:
  """Defines a flag for every axis of every medium."""
  for axis in axes().values():
    define = flags.DEFINE_multi_integer
    if axis.unit == "seconds":
      define = flags.DEFINE_multi_float
    define(axis.argument, None, f"{axis.help} {EACH}")


def size_values() -> dict[str, list[Any]]:
  """Sizes that were given, by axis."""
  found = {name: flags.FLAGS[name].value for name in axes()}
  return {name: value for name, value in found.items() if value is not None}


def _fields(cls: type) -> Iterator[tuple[str, dataclasses.Field, Any]]:
  """(flag, field, type) of every option, and of the fields of every group."""
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name, kind = field.name, hints[field.name]
    if groups := schema.sections(kind):
      for part, *rest in _fields(groups[0]):
        yield f"{name}.{part}", *rest
    else:
      yield name, field, kind


def _define(
  field: dataclasses.Field, kind: Any, name: str, values: flags.FlagValues
) -> None:
  text = field.metadata.get("help", "")
  parser, serializer = OptionParser(kind, name), flags.ArgumentSerializer()
  if kind is bool:
    flags.DEFINE_bool(name, None, text, flag_values=values)
  elif field.metadata.get("per_sample"):
    text = f"{text} {EACH}"
    flags.DEFINE_multi(parser, serializer, name, None, text, values)
  else:
    flags.DEFINE(parser, name, None, text, values, serializer)
  if alias := field.metadata.get("alias"):
    flags.DEFINE_alias(alias, name, flag_values=values)


def _takes_tuple(kind: Any) -> bool:
  members = (kind, *typing.get_args(kind))
  return any(typing.get_origin(member) is tuple for member in members)
