"""Pictures for people."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.media import sheet as picture


def grey(height, width, value=200):
  return Image.fromarray(np.full((height, width), value, np.uint8))


def test_enlarging_repeats_every_pixel():
  small = np.random.default_rng(0).integers(0, 255, (8, 24), np.uint8)
  large = np.asarray(picture.enlarge(Image.fromarray(small)))
  np.testing.assert_array_equal(large[::16, ::16], small)
  np.testing.assert_array_equal(large[15::16, 15::16], small)


def test_a_sheet_shows_every_picture_whole():
  images = [grey(8, 8), grey(8, 40), grey(24, 24), grey(32, 8)] * 4
  sheet = picture.contact_sheet(images, ["seven"] * 16, enlargement=4)
  assert sheet.width <= picture.LINE_WIDTH + 2 * picture.MARGIN
  shown = np.all(np.asarray(sheet) == 200, axis=-1).sum()
  assert shown >= 16 * sum(i.width * i.height for i in images)


def test_pictures_of_a_prompt_stay_in_a_line():
  images = [grey(32, 32)] * 12  # 268 pixels each, so three to a line.
  alone = picture.contact_sheet(images, ["a"] * 12)
  together = picture.contact_sheet(images, ["a"] * 12, each=4)
  assert alone.width < together.width <= 4 * (256 + picture.MARGIN) + 12
  assert alone.height * 3 == pytest.approx(together.height * 4, abs=60)


def test_a_long_caption_stands_in_lines_and_is_whole():
  words = "a cup of coffee, part of a red saucer, a wooden table, lower left"
  font = picture.ImageFont.load_default(picture.FONT_SIZE)
  lines = picture._fold(words, font, 200)
  assert 1 < len(lines) <= 3 and " ".join(lines) == words
  assert all(font.getlength(line) <= 200 for line in lines)
  assert picture._fold(words * 9, font, 200)[-1].endswith("…")


def test_a_sheet_may_be_wider_than_a_line_for_one_picture():
  sheet = picture.contact_sheet([grey(8, 300)], [""])
  assert sheet.width >= 300 * 8


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
  assert picture.file_stem(prompt) == stem


def test_saving_leaves_no_temporary_file(tmp_path):
  picture.save(grey(8, 8), tmp_path / "a.png")
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  assert Image.open(tmp_path / "a.png").size == (8, 8)
