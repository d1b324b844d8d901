"""Captions say what a canvas holds, and how large it is."""

import re
from collections import Counter

import numpy as np
import pytest

from data_pipelines import captions
from data_pipelines.captions import SIDE, WORDS, phrase, size

CANVASES = [(rows, columns) for rows in range(1, 5) for columns in range(1, 5)]


def drawn(canvas, count, seed=0):
  """Pairs of labels and a caption of them."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    labels = rng.integers(10, size=canvas)
    yield labels, phrase(labels, rng)


def read(caption):
  """Rows of digits that a caption names."""
  found = [
    re.findall(rf"\d|{'|'.join(WORDS)}", line)
    for line in caption.lower().split("/")
  ]
  return [
    [int(w) if w.isdigit() else WORDS.index(w) for w in row] for row in found
  ]


@pytest.mark.parametrize("canvas", CANVASES)
def test_size_inverts_phrase(canvas):
  expected = SIDE * canvas[0], SIDE * canvas[1]
  for seed in range(3):
    for _, caption in drawn(canvas, 60, seed):
      assert size(caption) == expected, caption


@pytest.mark.parametrize("canvas", CANVASES)
def test_a_caption_names_the_digits_in_order(canvas):
  for labels, caption in drawn(canvas, 60):
    assert read(caption) == labels.tolist(), caption


def spelling(caption):
  if re.search(r"\d", caption):
    return "joined" if re.search(r"\d\d", caption) else "figures"
  if caption.isupper():
    return "capitals"
  return "words" if caption.islower() else "capital"


def test_every_spelling_comes_equally_often():
  count = 2000
  counts = Counter(spelling(c) for _, c in drawn((1, 3), count))
  shares = {name: number / count for name, number in counts.items()}
  assert set(shares) == {"joined", "figures", "capitals", "words", "capital"}
  assert all(0.17 < share < 0.23 for share in shares.values()), shares


@pytest.mark.parametrize(
  ("canvas", "phrases"),
  [((1, 1), captions.SINGLE), ((1, 2), captions.SEVERAL)],
)
def test_every_phrase_occurs(canvas, phrases):
  texts = [caption.lower() for _, caption in drawn(canvas, 400)]
  digit = rf"(\d|{'|'.join(WORDS)}|\s)+"
  for pattern in phrases:
    assert any(re.fullmatch(pattern.format(digit), text) for text in texts)


def test_rows_are_parted_with_and_without_spaces():
  texts = [caption for _, caption in drawn((2, 1), 200)]
  spaced = np.mean([" / " in text for text in texts])
  assert 0.6 < spaced < 0.9
  assert all("/" in text for text in texts)


def test_a_caption_depends_on_labels_and_generator_only():
  assert [c for _, c in drawn((2, 2), 50)] == [c for _, c in drawn((2, 2), 50)]


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
def test_size_of_prompts_people_write(prompt, expected):
  assert size(prompt) == expected
