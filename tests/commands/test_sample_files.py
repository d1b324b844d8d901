"""Names of the files that a command writes."""

import pytest

from lumina_jax.commands.sample_files import file_stem, stems


@pytest.mark.parametrize(
  ("prompt", "stem"),
  [
    ("3 1 / 4 1", "3_1_over_4_1"),
    ("", "unconditional"),
    ("../../etc/passwd", "over_over_etc_over_passwd"),
    ("x" * 300, "x" * 60),
  ],
)
def test_stems_are_safe_file_names(prompt, stem):
  assert file_stem(prompt) == stem


def test_stems_differ_where_file_systems_ignore_case():
  found = stems(["A cat", "a cat", "a-cat"], [0, 0, 0])
  assert found == ["A_cat_seed0", "a_cat_seed0_2", "a_cat_seed0_3"]
