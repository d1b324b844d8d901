"""Pictures for people: samples enlarged, side by side, each with its prompt."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageDraw, ImageFont

ENLARGE = 16
MARGIN = 12
FONT_SIZE = 15
LINE_WIDTH = 1000


def enlarge(image: Image.Image, factor: int = ENLARGE) -> Image.Image:
  """Every pixel becomes a square, since 8x8 pixels look empty in a viewer."""
  size = image.width * factor, image.height * factor
  return image.resize(size, Image.Resampling.NEAREST)


def contact_sheet(
  images: Sequence[Image.Image], captions: Sequence[str], enlargement: int = 8
) -> Image.Image:
  """Lays pictures of any sizes in lines, like words, each above its caption."""
  font = ImageFont.load_default(FONT_SIZE)
  cells = []
  for image, text in zip(images, captions, strict=True):
    large = enlarge(image.convert("RGB"), enlargement)
    text = text or "(no prompt)"
    width = max(large.width, math.ceil(font.getlength(text)))
    cells.append((large, text, width))
  lines = _wrap(cells, [width for *_, width in cells])
  heights = [max(image.height for image, *_ in line) for line in lines]
  below = FONT_SIZE + 2 * MARGIN
  widest = max(sum(w + MARGIN for *_, w in line) for line in lines)
  size = widest + MARGIN, sum(h + below for h in heights) + MARGIN
  sheet = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(sheet)
  top = MARGIN
  for line, height in zip(lines, heights, strict=True):
    left = MARGIN
    for image, text, width in line:
      at = left + (width - image.width) // 2, top + height - image.height
      sheet.paste(image, at)
      indent = (width - math.ceil(font.getlength(text))) // 2
      place = left + indent, top + height + 4
      draw.text(place, text, fill="black", font=font)
      left += width + MARGIN
    top += height + below
  return sheet


def _wrap(cells: Sequence[Any], widths: Sequence[int]) -> list[list[Any]]:
  """Breaks cells into lines of at most `LINE_WIDTH` pixels."""
  lines, used = [[]], 0
  for cell, width in zip(cells, widths, strict=True):
    if lines[-1] and used + width > LINE_WIDTH:
      lines.append([])
      used = 0
    lines[-1].append(cell)
    used += width + MARGIN
  return lines


def save(image: Image.Image, path: epath.PathLike) -> None:
  """Writes a PNG, whole or not at all, on a disk or in a bucket."""
  path = epath.Path(path)
  new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  with new.open("wb") as file:
    image.save(file, format="PNG")
  new.replace(path)


def file_stem(prompt: str) -> str:
  """A prompt as a part of a file's name."""
  stem = re.sub(r"\W+", "_", prompt.replace("/", " over ")).strip("_")
  return stem[:60] or "unconditional"
