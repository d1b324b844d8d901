"""Tables of names: what each of our parameters is called elsewhere.

A table maps our path to their key and to what their array stands for; `layout`
reads it in both directions. "{i}" numbers the block, "{e}" the expert. `lumina`
and `diffusers` have one each.
"""

from __future__ import annotations

from typing import NamedTuple


class Name(NamedTuple):
  """Attributes: keys, equal copies of one array; kind, one of layout's."""

  keys: tuple[str, ...]
  kind: str


Table = dict[tuple[str, ...], Name]


class Rows:
  """A table in the making; prefixes stand before all that is added."""

  def __init__(self, ours: str = "", theirs: str = ""):
    self.table: Table = {}
    self._ours, self._theirs = ours, theirs

  def add(self, ours: str, *theirs: str, kind: str = "vector") -> None:
    keys = tuple(self._theirs + key for key in theirs)
    self.table[tuple((self._ours + ours).split("/"))] = Name(keys, kind)

  def matrix(self, ours: str, *theirs: str, kind: str = "matrix") -> None:
    self.add(f"{ours}/kernel", *(f"{key}.weight" for key in theirs), kind=kind)

  def linear(self, ours: str, theirs: str) -> None:
    self.matrix(ours, theirs)
    self.add(f"{ours}/bias", f"{theirs}.bias")

  def norm(self, ours: str, *theirs: str) -> None:
    self.add(f"{ours}/scale", *(f"{key}.weight" for key in theirs))
    self.add(f"{ours}/bias", *(f"{key}.bias" for key in theirs))
