"""Checks a name against the known ones and suggests the nearest."""

import difflib
from collections.abc import Iterable


def did_you_mean(
  name: object, known: Iterable[str], cutoff: float = 0.6
) -> str:
  """Returns "; did you mean 'x'?" for the nearest known name, else "".

  Args:
    name: the unknown name.
    known: all valid names.
    cutoff: how similar they must be, from 0 to 1.
  """
  near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
  return f"; did you mean {near[0]!r}?" if near else ""


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
  """Checks that a name is known.

  Args:
    kind: what the name stands for, e.g. "solver".
    name: the name.
    known: all valid names.

  Raises:
    ValueError: if it is unknown; suggests the nearest and lists all.
  """
  known = tuple(known)
  if name not in known:
    hint = did_you_mean(name, known)
    raise ValueError(
      f"unknown {kind} {name!r}{hint or ';'} use one of: {', '.join(known)}"
    )
