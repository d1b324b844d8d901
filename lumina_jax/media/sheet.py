"""Pictures for people: samples enlarged, side by side, each with its prompt."""

from __future__ import annotations

import bisect
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lumina_jax.files import atomic

ENLARGE = 16
MARGIN = 12
FONT_SIZE = 15
LEADING = 17  # From one line of text to the next.
CAPTION_LINES = 3
LINE_WIDTH = 1000
LARGE = 64  # Pixels; a picture with both sides above them is seen as it is.
THUMBNAIL = 320  # Pixels of a large picture's longer side on a sheet.


def enlarge(image: Image.Image, factor: int = ENLARGE) -> Image.Image:
  """Every pixel becomes a square, since 8x8 pixels look empty in a viewer."""
  size = image.width * factor, image.height * factor
  return image.resize(size, Image.Resampling.NEAREST)


def is_large(image: Image.Image) -> bool:
  """Whether a picture needs no enlarging to be seen."""
  return min(image.size) > LARGE


def contact_sheet(
  images: Sequence[Image.Image],
  captions: Sequence[str],
  enlargement: int = 8,
  each: int = 1,
) -> Image.Image:
  """Lays pictures of any sizes in lines, like words, each above its caption.

  Args:
    images: small ones are enlarged, large ones become thumbnails.
    captions: of each, in a few lines; cut short where that is not enough.
    enlargement: of small ones.
    each: so many that follow each other stay in a line, if it holds them.
  """
  font = ImageFont.load_default(FONT_SIZE)
  cells = []
  for image, text in zip(images, captions, strict=True):
    shown = image.convert("RGB")
    if is_large(image):
      shown.thumbnail((THUMBNAIL, THUMBNAIL))
    else:
      shown = enlarge(shown, enlargement)
    text = _fold(text or "(no prompt)", font, max(shown.width, THUMBNAIL))
    width = max(shown.width, *(math.ceil(font.getlength(t)) for t in text))
    cells.append((shown, text, width))
  lines = _wrap(cells, each)
  heights = [max(image.height for image, *_ in line) for line in lines]
  below = [
    max(len(text) for _, text, _ in line) * LEADING + 2 * MARGIN
    for line in lines
  ]
  widest = max(sum(w + MARGIN for *_, w in line) for line in lines)
  size = widest + MARGIN, sum(heights) + sum(below) + MARGIN
  sheet = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(sheet)
  top = MARGIN
  for line, height, under in zip(lines, heights, below, strict=True):
    left = MARGIN
    for image, text, width in line:
      at = left + (width - image.width) // 2, top + height - image.height
      sheet.paste(image, at)
      for number, words in enumerate(text):
        indent = (width - math.ceil(font.getlength(words))) // 2
        place = left + indent, top + height + 4 + number * LEADING
        draw.text(place, words, fill="black", font=font)
      left += width + MARGIN
    top += height + under
  return sheet


def _fold(text: str, font: Any, width: int) -> list[str]:
  """A caption in a few lines of at most so many pixels."""
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
  """A caption in one line of at most so many pixels."""
  text = " ".join(text.split())
  if font.getlength(text) <= width:
    return text
  fits = bisect.bisect(
    range(len(text)), width, key=lambda n: font.getlength(f"{text[:n]}…")
  )
  return f"{text[: max(fits - 1, 0)].rstrip()}…"


def _wrap(cells: Sequence[Any], each: int) -> list[list[Any]]:
  """Breaks cells, which end with their widths, into lines of `LINE_WIDTH`.

  So many that follow each other stay together, unless they are far too wide.
  """

  def width(unit):
    return sum(cell[-1] + MARGIN for cell in unit)

  units = [cells[start : start + each] for start in range(0, len(cells), each)]
  if max(map(width, units)) > 1.5 * LINE_WIDTH:
    units = [[cell] for cell in cells]
  lines, used = [[]], 0
  for unit in units:
    if lines[-1] and used + width(unit) > LINE_WIDTH + MARGIN:
      lines.append([])
      used = 0
    lines[-1] += unit
    used += width(unit)
  return lines


def save(
  image: Image.Image,
  path: epath.PathLike,
  texts: Mapping[str, str] | None = None,
) -> None:
  """Writes a PNG, whole or not at all, on a disk or in a bucket.

  Args:
    image: to write.
    path: of the file.
    texts: by keyword, written into it; PIL reads them as `Image.text`.
  """
  info = PngInfo()
  for keyword, text in (texts or {}).items():
    info.add_text(keyword, text)
  data = io.BytesIO()
  image.save(data, format="PNG", pnginfo=info)
  atomic.write_bytes(path, data.getvalue())


def write(
  image: Image.Image, path: epath.Path, texts: Mapping[str, str] | None = None
) -> list[epath.Path]:
  """Writes a picture as it is and, if it is small, enlarged beside it.

  Args:
    image: to write.
    path: of the file.
    texts: written into the files.

  Returns:
    The files.
  """
  save(image, path, texts)
  if is_large(image):
    return [path]
  large = path.with_name(f"{path.stem}_x{ENLARGE}.png")
  save(enlarge(image), large, texts)
  return [path, large]


def file_stem(prompt: str) -> str:
  """A prompt as a part of a file's name."""
  stem = re.sub(r"\W+", "_", prompt.replace("/", " over ")).strip("_")
  return stem[:60] or "unconditional"


def stems(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
  """Names of files, one for each prompt.

  Prompts that look alike in a file's name still get files of their own, also
  where a disk does not tell capitals.
  """
  found, taken = [], set()
  for prompt, seed in zip(prompts, seeds, strict=True):
    plain = f"{file_stem(prompt)}_seed{seed}"
    stem, again = plain, 1
    while stem.casefold() in taken:
      again += 1
      stem = f"{plain}_{again}"
    taken.add(stem.casefold())
    found.append(stem)
  return found
