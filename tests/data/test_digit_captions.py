"""Captions name the digits of a canvas, and its size."""

import re
from collections import Counter

import numpy as np
import pytest

from data_pipelines import digit_captions
from data_pipelines.digit_captions import SIDE, WORDS, canvas_size

CANVASES = [(1, 1), (1, 2), (2, 1), (1, 4), (3, 2), (4, 4)]


def examples(canvas, count, seed=0):
  """Pairs of labels and a caption of them."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    labels = rng.integers(10, size=canvas)
    yield labels, digit_captions.caption(labels, rng)


def read(caption):
  """Rows of digits that a caption names."""
  rows = [
    re.findall(rf"\d|{'|'.join(WORDS)}", line)
    for line in caption.lower().split("/")
  ]
  return [
    [int(w) if w.isdigit() else WORDS.index(w) for w in row] for row in rows
  ]


@pytest.mark.parametrize("canvas", CANVASES)
def test_a_caption_names_the_digits_in_order_and_the_size(canvas):
  expected = SIDE * canvas[0], SIDE * canvas[1]
  for labels, caption in examples(canvas, 120):
    assert read(caption) == labels.tolist(), caption
    assert canvas_size(caption) == expected, caption


def style(caption):
  if re.search(r"\d", caption):
    return "joined" if re.search(r"\d\d", caption) else "figures"
  if caption.isupper():
    return "capitals"
  return "words" if caption.islower() else "capital"


def test_every_style_is_equally_frequent():
  count = 2000
  counts = Counter(style(c) for _, c in examples((1, 3), count))
  shares = {name: number / count for name, number in counts.items()}
  assert set(shares) == {"joined", "figures", "capitals", "words", "capital"}
  assert all(0.17 < share < 0.23 for share in shares.values()), shares


@pytest.mark.parametrize(
  ("canvas", "phrases"),
  [((1, 1), digit_captions.SINGLE), ((1, 2), digit_captions.SEVERAL)],
)
def test_every_phrase_occurs(canvas, phrases):
  texts = [caption.lower() for _, caption in examples(canvas, 400)]
  digit = rf"(\d|{'|'.join(WORDS)}|\s)+"
  for pattern in phrases:
    assert any(re.fullmatch(pattern.format(digit), text) for text in texts)


def test_rows_are_separated_with_and_without_spaces():
  texts = [caption for _, caption in examples((2, 1), 200)]
  spaced = np.mean([" / " in text for text in texts])
  assert 0.6 < spaced < 0.9
  assert all("/" in text for text in texts)


def test_a_caption_depends_on_labels_and_generator_only():
  first, second = ([c for _, c in examples((2, 2), 50)] for _ in range(2))
  assert first == second


@pytest.mark.parametrize(
  ("prompt", "expected"),
  [
    ("", (8, 8)),
    ("no digit at all", (8, 8)),
    ("7", (8, 8)),
    ("someone often phones", (8, 8)),
    ("3 1 4", (8, 24)),
    ("3\n1\n4", (24, 8)),
    ("3 / one FOUR", (16, 16)),
    ("/ 3 1 /", (8, 16)),
  ],
)
def test_sizes_of_prompts_that_people_write(prompt, expected):
  assert canvas_size(prompt) == expected
