"""Prompts as class numbers, and labels of samples."""

import numpy as np
import pytest

from lumina_jax import packing
from lumina_jax.encoders import label


def test_a_prompt_is_a_class_number():
  assert label.tokenize(1000, "207").tolist() == [[207]]
  assert label.tokenize(1000, " 0 ").tolist() == [[0]]
  assert label.tokenize(1000, "999").dtype == np.int32


def test_the_empty_prompt_is_the_null_class():
  assert label.tokenize(1000, "").tolist() == [[1000]]


@pytest.mark.parametrize("prompt", ["cat", "-1", "1000", "1.5", "7 8", "²"])
def test_other_prompts_are_refused_with_the_range(prompt):
  with pytest.raises(ValueError, match=rf"'{prompt}': .* 0 to 999"):
    label.tokenize(1000, prompt)


def test_every_sample_of_a_row_gets_its_label():
  rows = [["3", "", "7"], ["5"]]
  packed = packing.stack(
    [
      packing.pack_text(
        [label.tokenize(10, prompt) for prompt in row], 4, label.CODE_WIDTH
      )
      for row in rows
    ]
  )
  condition = packed._replace(sample_ids=np.zeros((2, 3), np.int32))
  condition = label.to_labels(condition)
  assert condition.label.tolist() == [[3, 10, 7], [5, 0, 0]]
  assert condition.text is condition.text_segments is None
