"""The judges of generated digits, on digits whose nature is known."""

import numpy as np
import pytest

from data_pipelines.digit_captions import canvas_size
from data_pipelines.digits import split
from lumina_jax.evaluation.digits import Neighbours, Reader, cut, groups

KNOWN, HELD_OUT = split(0.2)


@pytest.fixture(scope="module")
def neighbours():
  return Neighbours(KNOWN)


def test_copies_are_near_duplicates(neighbours):
  copies = neighbours.judge(KNOWN.images + np.float32(0.01))
  assert copies["near_duplicates"] == 1.0 and copies["distance"] < 0.1


def test_noise_is_far_from_every_digit(neighbours):
  noise = np.random.default_rng(0).uniform(-1, 1, (50, 8, 8))
  judged = neighbours.judge(noise)
  real = neighbours.judge(HELD_OUT.images)
  assert judged["near_duplicates"] == 0.0
  assert judged["distance"] > 2 * real["distance"]


def test_the_reader_reads_digits_it_never_saw():
  reader = Reader(KNOWN)
  assert reader.accuracy(HELD_OUT.images, HELD_OUT.labels) > 0.98
  assert reader.accuracy(HELD_OUT.images, (HELD_OUT.labels + 1) % 10) < 0.02


def test_cut_undoes_a_canvas():
  digits = KNOWN.images[:6]
  rows = [np.hstack(digits[:3]), np.hstack(digits[3:])]
  canvas = np.round((np.vstack(rows) + 1) * 127.5).astype(np.uint8)[..., None]
  np.testing.assert_allclose(cut([canvas], 2, 3), digits, atol=1 / 127)


def test_groups_ask_for_canvases_of_their_size():
  asked = list(groups([(1, 1), (2, 3)], cells=60, seed=0))
  assert [g.spelling for g in asked if g.rows == 1] == [
    "figures",
    "words",
    "phrase",
    "capital",
  ]
  for group in asked:
    assert group.labels.size >= 60
    assert np.ptp(np.bincount(group.labels.reshape(-1), minlength=10)) <= 1
    for prompt in group.prompts:
      assert canvas_size(prompt) == (8 * group.rows, 8 * group.columns)
