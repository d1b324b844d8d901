"""Contact sheets: many previews on one page, each above its caption."""

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lumina_jax.media import image as images

MARGIN = 12
FONT_SIZE = 15
LEADING = 17  # Pixels from one line of text to the next.
CAPTION_LINES = 3
ROW_WIDTH = 1000
THUMBNAIL = 320  # Pixels of a large image's longer side.


class Cell(NamedTuple):
  """An image, its caption in lines, and the width of both."""

  image: Image.Image
  caption: list[str]
  width: int


def contact_sheet(
  previews: Sequence[Image.Image],
  captions: Sequence[str],
  enlargement: int = 8,
  each: int = 1,
) -> Image.Image:
  """Lays images of any sizes out in rows, each above its caption.

  Args:
    previews: small ones are enlarged, large ones become thumbnails.
    captions: one for each, folded into a few lines and cut if longer.
    enlargement: factor for small images.
    each: this many successive images stay in one row if it holds them.
  """
  font = ImageFont.load_default(FONT_SIZE)
  cells = [
    _cell(preview, caption, enlargement, font)
    for preview, caption in zip(previews, captions, strict=True)
  ]
  rows = _wrap(cells, each)
  heights = [max(cell.image.height for cell in row) for row in rows]
  below = [
    max(len(cell.caption) for cell in row) * LEADING + 2 * MARGIN
    for row in rows
  ]
  widest = max(sum(cell.width + MARGIN for cell in row) for row in rows)
  size = widest + MARGIN, sum(heights) + sum(below) + MARGIN
  sheet = Image.new("RGB", size, "white")
  top = MARGIN
  for row, height, under in zip(rows, heights, below, strict=True):
    left = MARGIN
    for cell in row:
      _place(sheet, cell, left, top + height, font)
      left += cell.width + MARGIN
    top += height + under
  return sheet


def _cell(
  preview: Image.Image, caption: str, enlargement: int, font: Any
) -> Cell:
  shown = preview.convert("RGB")
  if images.is_large(preview):
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
  else:
    shown = images.enlarge(shown, enlargement)
  lines = _fold(caption or "(no prompt)", font, max(shown.width, THUMBNAIL))
  widths = (math.ceil(font.getlength(line)) for line in lines)
  return Cell(shown, lines, max(shown.width, *widths))


def _place(
  sheet: Image.Image, cell: Cell, left: int, baseline: int, font: Any
) -> None:
  """Draws a cell: the image stands on the baseline, the caption below it."""
  image, draw = cell.image, ImageDraw.Draw(sheet)
  indent = (cell.width - image.width) // 2
  sheet.paste(image, (left + indent, baseline - image.height))
  for number, line in enumerate(cell.caption):
    indent = (cell.width - math.ceil(font.getlength(line))) // 2
    place = left + indent, baseline + 4 + number * LEADING
    draw.text(place, line, fill="black", font=font)


def _fold(text: str, font: Any, width: int) -> list[str]:
  """A caption in at most `CAPTION_LINES` lines of so many pixels."""
  lines, words = [], text.split()
  while words:
    if len(lines) == CAPTION_LINES - 1:
      return [*lines, _cut(" ".join(words), font, width)]
    count = 1
    while count < len(words) and (
      font.getlength(" ".join(words[: count + 1])) <= width
    ):
      count += 1
    lines.append(_cut(" ".join(words[:count]), font, width))
    words = words[count:]
  return lines or [""]


def _cut(text: str, font: Any, width: int) -> str:
  """A line of text, cut to so many pixels."""
  if font.getlength(text) <= width:
    return text
  fits = bisect.bisect(
    range(len(text)), width, key=lambda n: font.getlength(f"{text[:n]}…")
  )
  return f"{text[: max(fits - 1, 0)].rstrip()}…"


def _wrap(cells: Sequence[Cell], each: int) -> list[list[Cell]]:
  """Breaks cells into rows of `ROW_WIDTH`.

  Units of `each` cells stay together, unless one is far wider than a row.
  """

  def width(unit):
    return sum(cell.width + MARGIN for cell in unit)

  units = [cells[start : start + each] for start in range(0, len(cells), each)]
  if max(map(width, units)) > 1.5 * ROW_WIDTH:
    units = [[cell] for cell in cells]
  rows, used = [[]], 0
  for unit in units:
    if rows[-1] and used + width(unit) > ROW_WIDTH + MARGIN:
      rows.append([])
      used = 0
    rows[-1] += unit
    used += width(unit)
  return rows
