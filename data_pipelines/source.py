"""The interface of a source of training data: samples by draw."""

import enum
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lumina_jax.tokens import Grid

# Tokens, words and samples: what a record takes, or what a row offers.
Size = tuple[int, int, int]


@enum.unique
class Stream(enum.IntEnum):
  """What random numbers are for: the first number of every seed.

  NumPy pads seeds with zeros, so seeds of different lengths could be equal. A
  stream of its own keeps the numbers of each purpose apart. The values must not
  change: plans and crops of existing runs depend on them.
  """

  PLAN_MIX = 1
  PLAN_EPOCH = 2
  DIGITS = 3
  DIGIT_CAPTION = 4
  PATTERN = 5
  SYNTHETIC = 6
  IMAGE_BUCKET = 7
  IMAGE_CROP = 8
  IMAGE_CAPTION = 9
  IMAGE_LATENTS = 10
  SHARD = 13
  PLAN_EXTRA = 30
  PLAN_DEAL = 31


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


def locate(ends: np.ndarray, record: int) -> tuple[int, int]:
  """The part that holds a record, and the number of that part's first record.

  Args:
    ends: numbers of records of the parts, summed up to each of them.
    record: number of a record among those of all parts.
  """
  part = int(np.searchsorted(ends, record, side="right"))
  return part, int(ends[part - 1]) if part else 0


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
