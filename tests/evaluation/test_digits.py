"""Metrics of generated digits, on digits that are real, copies or noise."""

import numpy as np
import pytest

from data_pipelines.digit_captions import canvas_size
from data_pipelines.digits import split
from lumina_jax.evaluation.digits import (
  DigitClassifier,
  NearestNeighbors,
  prompt_groups,
  split_canvases,
)

TRAIN, HELD_OUT = split(0.2)


@pytest.fixture(scope="module")
def neighbors():
  return NearestNeighbors(TRAIN)


def test_copies_are_near_duplicates(neighbors):
  copies = neighbors.compare(TRAIN.images + np.float32(0.01))
  assert copies["near_duplicates"] == 1.0 and copies["distance"] < 0.1


def test_noise_is_far_from_every_digit(neighbors):
  noise = np.random.default_rng(0).uniform(-1, 1, (50, 8, 8))
  found = neighbors.compare(noise)
  real = neighbors.compare(HELD_OUT.images)
  assert found["near_duplicates"] == 0.0
  assert found["distance"] > 2 * real["distance"]


def test_the_classifier_recognises_held_out_digits():
  classifier = DigitClassifier(TRAIN)
  assert classifier.accuracy(HELD_OUT.images, HELD_OUT.labels) > 0.98
  assert classifier.accuracy(HELD_OUT.images, (HELD_OUT.labels + 1) % 10) < 0.02


def test_canvases_are_split_into_their_digits():
  digits = TRAIN.images[:6]
  rows = [np.hstack(digits[:3]), np.hstack(digits[3:])]
  canvas = np.round((np.vstack(rows) + 1) * 127.5).astype(np.uint8)[..., None]
  np.testing.assert_allclose(
    split_canvases([canvas], 2, 3), digits, atol=1 / 127
  )


def test_prompts_describe_canvases_of_their_size():
  groups = list(prompt_groups([(1, 1), (2, 3)], cells=60, seed=0))
  assert [group.phrasing for group in groups if group.rows == 1] == [
    "figures",
    "words",
    "phrase",
    "capital",
  ]
  for group in groups:
    assert group.labels.size >= 60
    assert np.ptp(np.bincount(group.labels.reshape(-1), minlength=10)) <= 1
    for prompt in group.prompts:
      assert canvas_size(prompt) == (8 * group.rows, 8 * group.columns)
