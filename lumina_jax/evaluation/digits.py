"""Judges of digits: does a canvas show its prompt, and is it a copy?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from sklearn import svm

from data_pipelines import digit_captions
from data_pipelines.digit_captions import SIDE
from data_pipelines.digits import Split

# A generated digit this near to a training digit, relative to how near training
# digits are to each other, counts as a copy.
NEAR_QUANTILE = 0.05

Spelling = Callable[[np.ndarray], str]


def _figures(labels: np.ndarray) -> str:
  return " / ".join(" ".join(str(d) for d in row) for row in labels)


def _words(labels: np.ndarray) -> str:
  return " / ".join(
    " ".join(digit_captions.WORDS[d] for d in row) for row in labels
  )


SPELLINGS: dict[str, Spelling] = {
  "figures": _figures,  # "3 1 4"
  "words": _words,  # "three one four"
}
SINGLE_SPELLINGS: dict[str, Spelling] = SPELLINGS | {
  "phrase": lambda labels: f"a handwritten {_words(labels)}",
  "capital": lambda labels: _words(labels).capitalize(),
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Canvases of one size whose prompts are spelled in one way."""

  rows: int
  columns: int
  spelling: str
  labels: np.ndarray  # i32[M, rows, columns]

  @property
  def prompts(self) -> list[str]:
    return [SINGLE_SPELLINGS[self.spelling](labels) for labels in self.labels]


def groups(
  canvases: Sequence[tuple[int, int]], cells: int, seed: int
) -> Iterator[Group]:
  """Random labels, at least `cells` digits for each canvas and spelling."""
  rng = np.random.default_rng(seed)
  for rows, columns in canvases:
    single = rows == columns == 1
    for spelling in SINGLE_SPELLINGS if single else SPELLINGS:
      count = -(-cells // (rows * columns))
      labels = np.resize(np.arange(10), count * rows * columns)
      labels = rng.permutation(labels).reshape(count, rows, columns)
      yield Group(rows, columns, spelling, labels)


class Reader:
  """Reads digits off pixels as a support vector classifier does."""

  def __init__(self, digits: Split):
    self._classifier = svm.SVC(gamma=0.05)
    self._classifier.fit(_flat(digits.images), digits.labels)

  def accuracy(self, digits: np.ndarray, labels: np.ndarray) -> float:
    """Share of digits `f32[M, 8, 8]` read as `i32[M]`."""
    return float(np.mean(self._classifier.predict(_flat(digits)) == labels))


class Neighbours:
  """Distances to the nearest training digit, and what counts as a copy."""

  def __init__(self, digits: Split):
    self._known = _flat(digits.images)
    among = self._distances(self._known)
    np.fill_diagonal(among, np.inf)
    self._near = float(np.quantile(among.min(axis=1), NEAR_QUANTILE))

  def judge(self, digits: np.ndarray) -> dict[str, float]:
    """Mean L2 distance of `f32[M, 8, 8]` to the nearest; share of copies."""
    nearest = self._distances(_flat(digits)).min(axis=1)
    return {
      "distance": float(nearest.mean()),
      "near_duplicates": float(np.mean(nearest < self._near)),
    }

  def _distances(self, x: np.ndarray) -> np.ndarray:
    square = (x**2).sum(1)[:, None] + (self._known**2).sum(1)
    return np.sqrt(np.maximum(square - 2 * x @ self._known.T, 0))


def _flat(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1).astype(np.float32)


def cut(canvases: Sequence[np.ndarray], rows: int, columns: int) -> np.ndarray:
  """Canvases `u8[8 rows, 8 columns, 1]` -> digits `f32[M, 8, 8]` in [-1, 1]."""
  x = np.stack(canvases).astype(np.float32)[..., 0] / 127.5 - 1
  x = x.reshape(len(x), rows, SIDE, columns, SIDE).transpose(0, 1, 3, 2, 4)
  return x.reshape(-1, SIDE, SIDE)
