"""The table of `benchmarks.train_step`."""

from typing import NamedTuple

import jax
import numpy as np

from benchmarks.train_cases import Case
from lumina_jax.backbone import flops
from lumina_jax.parallel import chips

# Loss and gradient norm of the first step, which must be equal on both sides.
First = tuple[float, float]
# Relative, by the dtype of products.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


class Result(NamedTuple):
  """Seconds per step, and values of the first step."""

  seconds: float
  first: First


def check(case: Case, ours: Result, theirs: Result) -> None:
  """Checks that both sides compute the same.

  Raises:
    ValueError: if their first steps differ by more than rounding.
  """
  if not np.allclose(ours.first, theirs.first, TOLERANCE[case.cfg.dtype], 0):
    raise ValueError(
      f"{case.network} at {case.tokens} tokens: loss and gradient norm are "
      f"{ours.first} here and {theirs.first} in torch"
    )


def peak_flops() -> float:
  """Peak bfloat16 FLOP/s of the chip; 0 if it is unknown."""
  chip = chips.chip_of(jax.devices()[0])
  return chip.flops if chip else 0


def make_row(
  case: Case, sides: list[str], results: dict[str, Result], peak: float
) -> list[str]:
  """The cells of a case, in the order of `columns`."""
  total = case.rows * case.tokens
  work = flops.count(case.cfg, case.rows, case.tokens, case.words).train

  def cells(value):
    return [value(results[n].seconds) if n in results else "-" for n in sides]

  both = len(sides) == 2 and len(results) == 2
  seconds = [results[name].seconds for name in sides] if both else []
  return [
    case.network,
    f"{case.rows} x {case.tokens}",
    case.cfg.remat,
    f"{work / 1e12:.3g}",
    *cells(lambda s: f"{s:.4f}"),
    *cells(lambda s: f"{total / s:,.0f}"),
    *(cells(lambda s: f"{work / s / peak:.1%}") if peak else []),
    *([f"{seconds[1] / seconds[0]:.2f}" if both else "-"]),
  ]


def columns(sides: list[str], peak: float) -> list[str]:
  """Column names of the table."""
  return [
    "network",
    "rows x tokens",
    "remat",
    "TFLOP",
    *[f"{name}, s/step" for name in sides],
    *[f"{name}, tokens/s" for name in sides],
    *([f"{name}, MFU" for name in sides] if peak else []),
    "torch / ours",
  ]
