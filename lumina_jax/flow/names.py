"""Names that callers choose by, and what to say of one that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
  """Raises ValueError for a name that is not known, and suggests near ones."""
  known = tuple(known)
  if name not in known:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
      f"unknown {kind} {name!r}; {hint}there are: {', '.join(known)}"
    )
