"""Captions of digit canvases in many phrasings, and the size they imply."""

import re
from collections.abc import Sequence

import numpy as np

SIDE = 8  # Height and width of a digit in pixels.

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

# {} stands for the digits.
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
# Mostly bare: words before the digits shift them away from their columns on the
# canvas, which larger canvases rely on.
SEVERAL = (*["{}"] * 9, "the digits {}", "handwritten {}", "a picture of {}")

_DIGIT = re.compile(rf"\d|\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def caption(digits: Sequence[Sequence[int]], rng: np.random.Generator) -> str:
  """Describes rows of digits: "3 1 / 4 1", "314", "a handwritten seven", ...

  The five styles ("3 1", "31", "three one", "Three one", "THREE ONE") are
  equally frequent in every phrase, so that each has its share of captions.
  """
  style = rng.integers(5)
  if style < 2:
    gap = " " if style == 0 else ""
    rows = [gap.join(str(d) for d in row) for row in digits]
  else:
    rows = [" ".join(WORDS[d] for d in row) for row in digits]
  text = ("/" if rng.random() < 0.25 else " / ").join(rows)
  phrases = SINGLE if sum(map(len, digits)) == 1 else SEVERAL
  text = phrases[rng.integers(len(phrases))].format(text)
  if style == 3:
    text = text[0].upper() + text[1:]
  return text.upper() if style == 4 else text


def canvas_size(prompt: str) -> tuple[int, int]:
  """Height and width in pixels of the canvas that a prompt implies.

  A slash or a newline begins a new row of digits. A prompt without digits gets
  the canvas of one digit.
  """
  counts = [len(_DIGIT.findall(line)) for line in re.split(r"[/\n]", prompt)]
  counts = [count for count in counts if count]
  return SIDE * max(len(counts), 1), SIDE * max(counts, default=1)
