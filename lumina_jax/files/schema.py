"""Frozen dataclasses from nested mappings, and back.

Config files, workdirs and exported pipelines store sections of keys; each
section is a frozen dataclass. A section may leave out fields with a default.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lumina_jax.files.suggest import did_you_mean


def parse(cls: Any, values: Any, at: str = "config") -> Any:
  """Builds a dataclass, and those within it, from a mapping.

  Args:
    cls: the dataclass. For a union `A | B` the keys select the class; `A |
      None` also accepts None.
    values: a ConfigDict or a dict.
    at: name of the section, for messages.

  Raises:
    ValueError: naming a key that is unknown, missing or of the wrong type.
  """
  if values is None and types.NoneType in typing.get_args(cls):
    return None
  if not isinstance(values, Mapping) and not hasattr(values, "items"):
    raise ValueError(f"{at} must be a section of keys, not {values!r}")
  cls = _best_match(values, sections(cls))
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      raise ValueError(f"unknown key {at}.{key}{did_you_mean(key, fields)}")
  hints = typing.get_type_hints(cls)
  arguments = {}
  for name, field in fields.items():
    if name not in values:
      if _required(field):
        raise ValueError(f"missing key {at}.{name}")
      continue
    build = parse if sections(hints[name]) else typed
    arguments[name] = build(hints[name], values[name], f"{at}.{name}")
  try:
    return cls(**arguments)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{at}: {error}") from error


def complete(cls: Any, config: ConfigDict) -> ConfigDict:
  """Adds the defaults that a config leaves out, so that flags can set them.

  Fields that default to None are not added: a flag takes its type from the
  value that it replaces. `parse` builds the same as before.

  Args:
    cls: the dataclass, as for `parse`.
    config: changed in place.

  Returns:
    The same config.
  """
  cls = _best_match(config, sections(cls))
  hints = typing.get_type_hints(cls)
  with config.unlocked():
    for field in dataclasses.fields(cls):
      name, default = field.name, field.default
      if name in config:
        if sections(hints[name]) and isinstance(config[name], ConfigDict):
          complete(hints[name], config[name])
      elif default not in (dataclasses.MISSING, None):
        if dataclasses.is_dataclass(default):
          default = ConfigDict(to_dict(default))
        config[name] = default
  return config


def typed(kind: Any, value: Any, at: str) -> Any:
  """A plain value of a type; ints pass as floats, lists as tuples.

  The items of a tuple are checked too.

  Args:
    kind: bool, int, float, str, tuple, or a union of them.
    value: from a config, a file or a caller.
    at: its name, for messages.

  Raises:
    ValueError: if the type does not match.
  """
  if isinstance(kind, types.UnionType):
    return _first_match(typing.get_args(kind), value, at)
  if kind is types.NoneType:
    if value is None:
      return None
    raise ValueError(f"{at} = {value!r} must be None")
  origin = typing.get_origin(kind) or kind
  takes = {float: (int, float), tuple: (tuple, list)}.get(origin, origin)
  if isinstance(value, bool) != (origin is bool) or not isinstance(
    value, takes
  ):
    raise ValueError(f"{at} = {value!r} must be of type {origin.__name__}")
  return _items(kind, value, at) if origin is tuple else origin(value)


def _items(kind: Any, values: Sequence[Any], at: str) -> tuple[Any, ...]:
  """A tuple with items of the types that its annotation names."""
  kinds = typing.get_args(kind) or (Any, ...)
  if kinds[-1] is ...:
    kinds = kinds[:1] * len(values)
  if len(kinds) != len(values):
    raise ValueError(f"{at} = {values!r} must have {len(kinds)} items")
  return tuple(
    item if kind is Any else typed(kind, item, f"{at}[{n}]")
    for n, (kind, item) in enumerate(zip(kinds, values, strict=True))
  )


def _first_match(kinds: tuple[Any, ...], value: Any, at: str) -> Any:
  """The value as the first type of a union that takes it."""
  for kind in kinds:
    try:
      return typed(kind, value, at)
    except ValueError:
      continue
  names = [
    str(kind) if typing.get_args(kind) else kind.__name__ for kind in kinds
  ]
  raise ValueError(f"{at} = {value!r} must be of type {' or '.join(names)}")


def check_positive(config: Any, *names: str) -> None:
  """Checks that fields of a dataclass are positive.

  Raises:
    ValueError: naming a field that is not.
  """
  for name in names:
    if not getattr(config, name) > 0:
      raise ValueError(f"{name} = {getattr(config, name)}: must be positive")


def check_share(config: Any, *names: str) -> None:
  """Checks that fields of a dataclass are shares.

  Raises:
    ValueError: naming a field that is not from 0 to 1.
  """
  for name in names:
    if not 0 <= getattr(config, name) <= 1:
      raise ValueError(f"{name} = {getattr(config, name)}: must be from 0 to 1")


def to_dict(config: Any) -> Any:
  """A dataclass (or None) as plain JSON values."""
  return json.loads(json.dumps(config, default=dataclasses.asdict))


def differences(old: Any, new: Any) -> list[str]:
  """Returns a line "key: old -> new" for every value that differs."""
  a, b = flatten(to_dict(old)), flatten(to_dict(new))
  missing = "(none)"
  return [
    f"{key}: {a.get(key, missing)!r} -> {b.get(key, missing)!r}"
    for key in sorted(a.keys() | b.keys())
    if a.get(key, missing) != b.get(key, missing)
  ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Maps the values of nested dicts to paths: {"a": {"b": 1}} -> {"a.b": 1}."""
  flat = {}
  for key, value in values.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def sections(kind: Any) -> list[type]:
  """The dataclasses that an annotation allows."""
  members = typing.get_args(kind) or (kind,)
  return [member for member in members if dataclasses.is_dataclass(member)]


def _required(field: dataclasses.Field) -> bool:
  missing = dataclasses.MISSING
  return field.default is missing and field.default_factory is missing


def _best_match(values: Mapping[str, Any], classes: list[type]) -> type:
  """The class that shares most keys with the values."""

  def shared(cls):
    return sum(field.name in values for field in dataclasses.fields(cls))

  return max(classes, key=shared)
