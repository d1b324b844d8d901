"""Sizes and candidates of `benchmarks.attention`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.peer import Work

# FLOPs over those of the forward pass, which has two products; the backward
# pass has five, one of them recomputed (Dao 2023, section 4.1).
PASSES = {"forward": 1.0, "and backward": 3.5}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured.

  Attributes:
    kernels: our kernels; the first is the reference of ratios.
    tokens: values of L.
    heads: H.
    head_dims: values of K.
    row_tokens: B L, rounded up to whole rows.
    dtype: dtype of all arrays.
    calls: successive calls that a time is the mean of. As in a network, each is
      launched while the one before still runs.
  """

  kernels: list[str]
  tokens: list[int]
  heads: int
  head_dims: list[int]
  row_tokens: int
  dtype: str
  calls: int


class Size(NamedTuple):
  """The shape `[B, L, H, K]` of queries, keys and values."""

  rows: int
  tokens: int
  heads: int
  head_dim: int

  def flops(self, direction: str) -> float:
    """FLOPs of a pass of `PASSES`."""
    B, L, H, K = self
    return PASSES[direction] * 4 * B * L**2 * H * K

  def random_arrays(self) -> list[np.ndarray]:
    """Queries, keys, values and the cotangent of the output."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(self, np.float32) for _ in range(4)]


class Candidate(NamedTuple):
  """One way to compute a pass.

  Attributes:
    outputs: computes the output and, in the second pass, gradients.
    work: the call that is timed.
    memory: temporary bytes of the program, if known.
  """

  outputs: Callable[[], list[np.ndarray]]
  work: Work
  memory: int | None = None
