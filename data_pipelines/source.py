"""The interface of a source of training data: samples by draw."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lumina_jax.tokens import Grid

# Tokens, words and samples: what a record takes, or what a row offers.
Size = tuple[int, int, int]


class Draw(NamedTuple):
  """One use of a record, as the row plan decides it.

  Attributes:
    epoch: how often the record was drawn before. Epoch and record seed all
      random choices.
    record: number of the record.
    slot: number of the record whose slot in the plan is filled. Both records
      have the same kind; the sample takes the size of the slot.
  """

  epoch: int
  record: int
  slot: int


class Sample(NamedTuple):
  """A sample of any medium.

  Attributes:
    grid: layout of the L tokens.
    patches: `f32[L, P]`, the patchified latents.
    text: codes of the prompt `i32[S, K]`, or features of a frozen language
      model `f32[S, E]`.
    caption: the prompt as text, for people.
  """

  grid: Grid
  patches: np.ndarray
  text: np.ndarray
  caption: str = ""


class BadRecord(Exception):
  """A record that cannot be used; the message names it and the reason."""


class Source(Protocol):
  """Random access to samples; a draw always gives the same sample.

  Attributes:
    sizes: tokens, words and samples (1) that each record takes at most.
    kinds: kind of each record; records of one kind may swap slots.
  """

  sizes: Sequence[Size]
  kinds: Sequence[Hashable]

  def sample(self, draw: Draw) -> Sample:
    """Returns the sample of a draw.

    Raises:
      BadRecord: if the record cannot be used.
    """

  def name(self, record: int) -> str:
    """Returns the name of a record, for messages."""
