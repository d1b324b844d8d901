"""What a source of training data gives: samples by draw."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lumina_jax.tokens import Grid


class Draw(NamedTuple):
  """One use of a record, as the row plan decides it.

  Attributes:
    epoch: how often the record was drawn before; with the record it keys
      whatever is chosen at random.
    record: its number.
    place: number of the record whose place in the plan it takes, one of the
      same kind: it has to come out as large as that one.
  """

  epoch: int
  record: int
  place: int


class Sample(NamedTuple):
  """One medium: its layout, patches `f32[L, P]`, prompt codes `i32[S, K]`.

  Of a frozen language model text is features `f32[S, E]` in place of codes. The
  caption is for people to read.
  """

  grid: Grid
  patches: np.ndarray
  text: np.ndarray
  caption: str = ""


class BadRecord(Exception):
  """A record that cannot be used; the message says which, and why."""


class Source(Protocol):
  """Random access: a draw is the same whenever it is asked for.

  Attributes:
    sizes: (tokens, words, 1) that each record takes in its own place, at the
      most, in any epoch.
    kinds: of each record; those of one kind may take each other's places.
  """

  sizes: Sequence[tuple[int, int, int]]
  kinds: Sequence[Hashable]

  def sample(self, draw: Draw) -> Sample:
    """What a draw gives.

    Raises:
      BadRecord: if the record is broken.
    """

  def name(self, record: int) -> str:
    """Says which record that is, to a person."""
