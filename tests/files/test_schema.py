"""Dataclasses from sections of keys, and back."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from lumina_jax.files import schema


@dataclasses.dataclass(frozen=True)
class Inner:
  size: int
  rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Other:
  name: str


@dataclasses.dataclass(frozen=True)
class Outer:
  seed: int
  inner: Inner | Other
  maybe: Inner | None = None
  times: str | tuple[float, ...] = "uniform"
  sides: tuple[int, ...] = ()
  range: tuple[float, float] = (0.0, 1.0)
  limit: float | None = None

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(f"seed = {self.seed}: must not be negative")


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ({"seed": 1, "inner": {"size": 2}}, Outer(1, Inner(2))),
    ({"seed": 1, "inner": {"name": "x"}}, Outer(1, Other("x"))),
    (
      {"seed": 1, "inner": {"size": 2, "rate": 1}, "maybe": None},
      Outer(1, Inner(2, 1.0)),
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "times": [0, 1], "sides": [8, 8]},
      Outer(1, Inner(2), times=(0, 1), sides=(8, 8)),
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "limit": 3},
      Outer(1, Inner(2), limit=3.0),
    ),
  ],
)
def test_sections_become_dataclasses(values, expected):
  assert schema.parse(Outer, values) == expected
  assert schema.parse(Outer, ConfigDict(values)) == expected
  assert schema.parse(Outer, schema.to_dict(expected)) == expected


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (None, r"^c must be a section of keys, not None"),
    ({"sed": 1, "inner": {"size": 2}}, r"c\.sed; did you mean 'seed'\?"),
    ({"inner": {"size": 2}}, r"^missing key c\.seed$"),
    ({"seed": True, "inner": {"size": 2}}, r"c\.seed = True must be of type"),
    ({"seed": 1.5, "inner": {"size": 2}}, r"c\.seed = 1\.5 .* type int"),
    ({"seed": 1, "inner": 3}, r"c\.inner must be a section"),
    ({"seed": 1, "inner": {"size": "x"}}, r"c\.inner\.size = 'x' .* int"),
    ({"seed": -1, "inner": {"size": 2}}, r"^c: seed = -1: must not be neg"),
    (
      {"seed": 1, "inner": {"size": 2}, "times": 3},
      r"c\.times = 3 must be of type str or tuple",
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "times": [0, "x"]},
      r"c\.times = \[0, 'x'\] must be of type str or tuple\[float, \.\.\.\]",
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "sides": [8, 1.5]},
      r"c\.sides\[1\] = 1\.5 must be of type int",
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "range": [0.5]},
      r"c\.range = \[0\.5\] must have 2 items",
    ),
    (
      {"seed": 1, "inner": {"size": 2}, "limit": "x"},
      r"c\.limit = 'x' must be of type float or NoneType",
    ),
  ],
)
def test_wrong_values_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    schema.parse(Outer, values, "c")


def test_differences_name_each_changed_key():
  old, new = Outer(1, Inner(2)), Outer(1, Inner(3), limit=1.0)
  assert schema.differences(old, old) == []
  assert schema.differences(old, new) == [
    "inner.size: 2 -> 3",
    "limit: None -> 1.0",
  ]


def test_completing_adds_defaults_that_flags_can_set():
  config = ConfigDict({"seed": 1, "inner": {"size": 2}})
  expected = schema.parse(Outer, config)
  schema.complete(Outer, config)
  assert config.inner.rate == 0.5
  assert config.times == "uniform"
  assert "limit" not in config  # A flag could not tell its type.
  assert schema.parse(Outer, config) == expected
