"""Captions of digit canvases in many phrasings, and back to their size."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

SIDE = 8  # pixels of a digit, in height and width

WORDS = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)

LONGEST = max(range(10), key=lambda digit: len(WORDS[digit]))

# {} stands for the digits in one of the spellings below.
SINGLE = (
  "{}",
  "{}",
  "{}",
  "a {}",
  "digit {}",
  "the digit {}",
  "the number {}",
  "handwritten {}",
  "a handwritten {}",
  "a picture of {}",
  "please draw the digit {}",
  "a {} please",
)
# Mostly bare: words before the digits move them away from the columns in which
# they stand on the canvas, which is what larger canvases are drawn by.
SEVERAL = (
  *["{}"] * 9,
  "the digits {}",
  "handwritten {}",
  "a picture of {}",
)

_DIGIT = re.compile(rf"\d|\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def phrase(digits: Sequence[Sequence[int]], rng: np.random.Generator) -> str:
  """Describes rows of digits: "3 1 / 4 1", "314", "a handwritten seven", ...

  The five spellings ("3 1", "31", "three one", "Three one", "THREE ONE") come
  equally often whatever the phrase, since each needs its share of the captions.
  """
  spelling = rng.integers(5)
  if spelling < 2:
    gap = " " if spelling == 0 else ""
    rows = [gap.join(str(d) for d in row) for row in digits]
  else:
    rows = [" ".join(WORDS[d] for d in row) for row in digits]
  text = ("/" if rng.random() < 0.25 else " / ").join(rows)
  phrases = SINGLE if sum(map(len, digits)) == 1 else SEVERAL
  text = phrases[rng.integers(len(phrases))].format(text)
  if spelling == 3:
    text = text[0].upper() + text[1:]
  return text.upper() if spelling == 4 else text


def size(prompt: str) -> tuple[int, int]:
  """Height and width in pixels of the canvas that a prompt speaks of.

  A slash or a newline begins a new row of digits; a prompt that names no digit
  gets room for one.
  """
  counts = [len(_DIGIT.findall(line)) for line in re.split(r"[/\n]", prompt)]
  counts = [count for count in counts if count]
  return SIDE * max(len(counts), 1), SIDE * max(counts, default=1)
