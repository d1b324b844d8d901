"""Metrics of generated digits: prompt accuracy and memorisation."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from sklearn import neighbors, svm

from data_pipelines import digit_captions
from data_pipelines.digit_captions import SIDE
from data_pipelines.digits import Split

# A generated digit counts as a copy if its nearest training digit is closer
# than this quantile of the distances between nearest training digits.
COPY_QUANTILE = 0.05

# Labels i32[rows, columns] -> prompt.
Phrasing = Callable[[np.ndarray], str]


def _numerals(labels: np.ndarray) -> str:
  return " / ".join(" ".join(str(d) for d in row) for row in labels)


def _words(labels: np.ndarray) -> str:
  return " / ".join(
    " ".join(digit_captions.WORDS[d] for d in row) for row in labels
  )


PHRASINGS: dict[str, Phrasing] = {
  "figures": _numerals,  # "3 1 4"
  "words": _words,  # "three one four"
}
SINGLE_DIGIT_PHRASINGS: dict[str, Phrasing] = PHRASINGS | {
  "phrase": lambda labels: f"a handwritten {_words(labels)}",
  "capital": lambda labels: _words(labels).capitalize(),
}


@dataclasses.dataclass(frozen=True)
class PromptGroup:
  """Canvases of one size whose prompts have one phrasing.

  Attributes:
    rows: rows of digits of a canvas.
    columns: columns of digits of a canvas.
    phrasing: a key of `PHRASINGS`, or of `SINGLE_DIGIT_PHRASINGS` for 1 x 1.
    labels: digits of M canvases, `i32[M, rows, columns]`.
  """

  rows: int
  columns: int
  phrasing: str
  labels: np.ndarray

  @property
  def prompts(self) -> list[str]:
    """One prompt per canvas."""
    phrase = SINGLE_DIGIT_PHRASINGS[self.phrasing]
    return [phrase(labels) for labels in self.labels]


def prompt_groups(
  canvases: Sequence[tuple[int, int]], cells: int, seed: int
) -> Iterator[PromptGroup]:
  """Random labels, with at least `cells` digits per canvas size and phrasing.

  Args:
    canvases: (rows, columns) of each size.
    cells: minimum number of digits.
    seed: seed of the labels.
  """
  rng = np.random.default_rng(seed)
  for rows, columns in canvases:
    single = rows == columns == 1
    for phrasing in SINGLE_DIGIT_PHRASINGS if single else PHRASINGS:
      count = -(-cells // (rows * columns))
      labels = np.resize(np.arange(10), count * rows * columns)
      labels = rng.permutation(labels).reshape(count, rows, columns)
      yield PromptGroup(rows, columns, phrasing, labels)


class DigitClassifier:
  """A support vector classifier, fitted to the pixels of real digits."""

  def __init__(self, digits: Split):
    self._classifier = svm.SVC(gamma=0.05)
    self._classifier.fit(_flat(digits.images), digits.labels)

  def accuracy(self, digits: np.ndarray, labels: np.ndarray) -> float:
    """Share of digits `f32[M, 8, 8]` classified as their labels `i32[M]`."""
    return float(np.mean(self._classifier.predict(_flat(digits)) == labels))


class NearestNeighbors:
  """Distances of digits to the nearest training digit."""

  def __init__(self, digits: Split):
    self._nearest = neighbors.NearestNeighbors(n_neighbors=1)
    self._nearest.fit(_flat(digits.images))
    distances, _ = self._nearest.kneighbors()  # To the nearest other digit.
    self._near = float(np.quantile(distances, COPY_QUANTILE))

  def compare(self, digits: np.ndarray) -> dict[str, float]:
    """Mean L2 distance of `f32[M, 8, 8]` to the nearest; share of copies."""
    nearest, _ = self._nearest.kneighbors(_flat(digits))
    return {
      "distance": float(nearest.mean()),
      "near_duplicates": float(np.mean(nearest < self._near)),
    }


def _flat(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1).astype(np.float32)


def split_canvases(
  canvases: Sequence[np.ndarray], rows: int, columns: int
) -> np.ndarray:
  """Canvases `u8[8 rows, 8 columns, 1]` -> digits `f32[M, 8, 8]` in [-1, 1]."""
  x = np.stack(canvases).astype(np.float32)[..., 0] / 127.5 - 1
  x = x.reshape(len(x), rows, SIDE, columns, SIDE).transpose(0, 1, 3, 2, 4)
  return x.reshape(-1, SIDE, SIDE)
