"""What a source of training data gives: samples by epoch and record."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from lumina_jax.tokens import Grid


class Sample(NamedTuple):
  """One medium: its layout, patches `f32[L, P]`, prompt codes `i32[S, K]`."""

  grid: Grid
  patches: np.ndarray
  text: np.ndarray


class Source(Protocol):
  """Random access: a record of an epoch is the same whenever it is asked for.

  Attributes:
    sizes: (tokens, words, 1) that each record takes at the most, in any epoch.
  """

  sizes: list[tuple[int, int, int]]

  def sample(self, epoch: int, record: int) -> Sample: ...
