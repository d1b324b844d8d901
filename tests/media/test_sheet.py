"""Contact sheets."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.media import sheet as sheets


def grey(height, width, value=200):
  return Image.fromarray(np.full((height, width), value, np.uint8))


def test_a_sheet_shows_every_image_whole():
  images = [grey(8, 8), grey(8, 40), grey(24, 24), grey(32, 8)] * 4
  sheet = sheets.contact_sheet(images, ["seven"] * 16, enlargement=4)
  assert sheet.width <= sheets.ROW_WIDTH + 2 * sheets.MARGIN
  shown = np.all(np.asarray(sheet) == 200, axis=-1).sum()
  assert shown >= 16 * sum(i.width * i.height for i in images)


def test_samples_of_a_prompt_stay_in_a_row():
  images = [grey(32, 32)] * 12  # 268 pixels each, so three to a row.
  alone = sheets.contact_sheet(images, ["a"] * 12)
  together = sheets.contact_sheet(images, ["a"] * 12, each=4)
  assert alone.width < together.width <= 4 * (256 + sheets.MARGIN) + 12
  assert alone.height * 3 == pytest.approx(together.height * 4, abs=60)


def test_a_long_caption_is_folded_then_cut():
  words = "a cup of coffee, part of a red saucer, a wooden table, lower left"
  font = sheets.ImageFont.load_default(sheets.FONT_SIZE)
  lines = sheets._fold(words, font, 200)
  assert 1 < len(lines) <= 3 and " ".join(lines) == words
  assert all(font.getlength(line) <= 200 for line in lines)
  assert sheets._fold(words * 9, font, 200)[-1].endswith("…")


def test_a_wide_image_widens_the_sheet():
  sheet = sheets.contact_sheet([grey(8, 300)], [""])
  assert sheet.width >= 300 * 8
