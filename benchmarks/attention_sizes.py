"""What takes part in `benchmarks.attention`: sizes and contestants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.peer import Work

# Products, forward being two: five backward, of which one anew (Dao 2023,
# section 4.1).
PASSES = {"forward": 1.0, "and backward": 3.5}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured.

  Attributes:
    kernels: of ours; the first is what others are compared with.
    tokens: L, one size after the other.
    heads: H.
    head_dims: K, one after the other.
    row_tokens: B L, at least.
    dtype: of all arrays.
    calls: in a row, that a time is the mean of: what it costs to start one
      hides behind the one before, as it would in a network.
  """

  kernels: list[str]
  tokens: list[int]
  heads: int
  head_dims: list[int]
  row_tokens: int
  dtype: str
  calls: int


class Size(NamedTuple):
  """The shape `[B, L, H, K]` of queries, keys and values alike."""

  rows: int
  tokens: int
  heads: int
  head_dim: int

  def flops(self, which: str) -> float:
    """Operations of a pass of `PASSES`."""
    B, L, H, K = self
    return PASSES[which] * 4 * B * L**2 * H * K

  def draw(self) -> list[np.ndarray]:
    """Queries, keys, values and the cotangent of the output."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(self, np.float32) for _ in range(4)]


class Contestant(NamedTuple):
  """One way to compute a pass.

  Attributes:
    outputs: computes once; the output, and in the second pass gradients.
    work: what is timed.
    memory: temporary bytes of the program; None where it does not tell.
  """

  outputs: Callable[[], list[np.ndarray]]
  work: Work
  memory: int | None = None
