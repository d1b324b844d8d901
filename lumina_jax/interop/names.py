"""Name tables: what each of our parameters is called in another state dict.

A table maps the path of a parameter to its keys in the other state dict and to
the kind of its array. `layout` reads a table in both directions. "{i}" in a key
is the number of the block, "{e}" the number of the expert.
"""

from typing import NamedTuple


class Name(NamedTuple):
  """The name of one parameter in another state dict.

  Attributes:
    keys: Keys of equal copies of the array; most arrays have one.
    kind: How the array is laid out, one of the kinds of `layout`.
  """

  keys: tuple[str, ...]
  kind: str


NameTable = dict[tuple[str, ...], Name]


class TableBuilder:
  """Builds a name table.

  Attributes:
    table: The entries so far.
  """

  def __init__(self, ours: str = "", theirs: str = ""):
    """Starts an empty table.

    Args:
      ours: prefix of all our paths.
      theirs: prefix of all their keys.
    """
    self.table: NameTable = {}
    self._ours, self._theirs = ours, theirs

  def add(self, ours: str, *theirs: str, kind: str = "vector") -> None:
    """Adds one parameter: its path, with slashes, and its keys."""
    keys = tuple(self._theirs + key for key in theirs)
    self.table[tuple((self._ours + ours).split("/"))] = Name(keys, kind)

  def matrix(self, ours: str, *theirs: str, kind: str = "matrix") -> None:
    """Adds a kernel, which PyTorch calls a weight."""
    self.add(f"{ours}/kernel", *(f"{key}.weight" for key in theirs), kind=kind)

  def linear(self, ours: str, theirs: str, kind: str = "matrix") -> None:
    """Adds a kernel and its bias."""
    self.matrix(ours, theirs, kind=kind)
    self.add(f"{ours}/bias", f"{theirs}.bias")

  def norm(self, ours: str, *theirs: str) -> None:
    """Adds the scale and the bias of a norm."""
    self.add(f"{ours}/scale", *(f"{key}.weight" for key in theirs))
    self.add(f"{ours}/bias", *(f"{key}.bias" for key in theirs))
