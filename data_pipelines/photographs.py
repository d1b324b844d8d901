"""Writes a folder of photographs with captions, to try a run on real pictures.

  python -m data_pipelines.photographs --output=photographs

They are the photographs that scikit-learn ships and, where it is installed,
those of scikit-image that need no download and whose licence is told. Each is
cut into overlapping parts of several aspect ratios; a part's caption names what
of the photograph lies in it. The same packages give the same files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence

from absl import app, flags
from PIL import Image

from data_pipelines.shipped_photographs import (
  SHIPPED,
  Box,
  Photograph,
  installed,
)
from lumina_jax.commands import start as entry_point

README = "README.md"
TITLE = "# Photographs cut into parts"  # First line of a folder of ours.
RATIOS = (1.0, 2 / 3, 3 / 2, 1 / 2, 2.0)  # Width over height.
SMALL = 0.7  # Of the longest part: the side of those from two corners.
LONGEST = 640  # Pixels of a part.
QUALITY = 90  # Of JPEGs.
WHOLE = 0.9  # Share of a thing in a part from which it is named,
SEEN = 0.15  # that from which a part of it is,
FILLED = 0.1  # and that of the part which does as well.
OFF = 0.08  # Of the photograph: a part's centre so far off has a side.
INSTALL = "pip install scikit-image"


def parts(width: int, height: int) -> list[Box]:
  """Parts of a photograph, none twice.

  Of each ratio the largest that fits, at either end, and a smaller one in two
  opposite corners.

  Args:
    width: pixels.
    height: likewise.

  Returns:
    (left, top, right, bottom) in pixels.
  """
  found = []
  for number, ratio in enumerate(RATIOS):
    for scale in (1.0, SMALL):
      w = scale * min(width, height * ratio)
      size = round(w), round(w / ratio)
      corners = ((0, 0), (1, 1)) if number % 2 else ((1, 0), (0, 1))
      found += [_at(width, height, size, corner) for corner in corners]
  return list(dict.fromkeys(found))


def _at(
  width: int, height: int, size: tuple[int, int], corner: tuple[int, int]
) -> Box:
  left = corner[0] * (width - size[0])
  top = corner[1] * (height - size[1])
  return left, top, left + size[0], top + size[1]


def caption(photograph: Photograph, part: Box) -> str:
  """What a part shows.

  Args:
    photograph: of which it is a part.
    part: (left, top, right, bottom), each a share of width or height.
  """
  words = []
  for name, box in photograph.things:
    common = _common(box, part)
    share = common / _area(box)
    if share >= WHOLE:
      words.append(name)
    elif share >= SEEN or common / _area(part) >= FILLED:
      words.append(f"part of {name}")
  return ", ".join([*words, photograph.setting, *_place(part)])


def _area(box: Box) -> float:
  return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _common(one: Box, other: Box) -> float:
  """Area of what two boxes share."""
  left, top = max(one[0], other[0]), max(one[1], other[1])
  return _area((left, top, min(one[2], other[2]), min(one[3], other[3])))


def _place(part: Box) -> list[str]:
  """Where in the photograph a part lies; [] = in the middle."""
  x, y = (part[0] + part[2] - 1) / 2, (part[1] + part[3] - 1) / 2
  names = [
    below if off < 0 else above
    for off, below, above in ((y, "upper", "lower"), (x, "left", "right"))
    if abs(off) > OFF
  ]
  return [f"{' '.join(names)} part"] if names else []


def files(
  found: Mapping[Photograph, pathlib.Path],
) -> Iterator[tuple[str, bytes]]:
  """Names and contents of all files of a folder, the pictures' first.

  Args:
    found: of `installed`.

  Raises:
    OSError: if a photograph cannot be read.
  """
  for photograph, path in found.items():
    with Image.open(path) as image:
      image.load()
    width, height = image.size
    for number, part in enumerate(parts(width, height)):
      stem = f"{path.stem}_{number:02d}"
      suffix, data = _encoded(image.crop(part))
      yield f"{stem}{suffix}", data
      across = part[0] / width, part[1] / height
      share = (*across, part[2] / width, part[3] / height)
      yield f"{stem}.txt", f"{caption(photograph, share)}\n".encode()
  yield README, _readme(found).encode()


def _encoded(image: Image.Image) -> tuple[str, bytes]:
  """Colours as JPEG, grey as PNG; longer ones than `LONGEST` are shrunk."""
  image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
  data = io.BytesIO()
  if image.mode == "L":
    image.save(data, "PNG", optimize=True)
    return ".png", data.getvalue()
  image.convert("RGB").save(data, "JPEG", quality=QUALITY)
  return ".jpg", data.getvalue()


def _readme(found: Mapping[Photograph, pathlib.Path]) -> str:
  packages = sorted({photograph.distribution for photograph in found})
  versions = [f"{p} {importlib.metadata.version(p)}" for p in packages]
  credits = [f"- {path.name}: {p.credit}" for p, path in found.items()]
  lines = [
    TITLE,
    "",
    "Made by python -m data_pipelines.photographs from "
    f"{' and '.join(versions)}: parts of these photographs, encoded anew.",
    "The name of a part begins with that of its photograph.",
    "",
    *credits,
  ]
  return "\n".join(lines) + "\n"


def write(
  folder: str | os.PathLike, found: Mapping[Photograph, pathlib.Path]
) -> int:
  """Writes a folder, whole or not at all; one of ours is replaced.

  Args:
    folder: that is not there, empty, or was written by this function.
    found: of `installed`.

  Returns:
    How many pictures it holds.

  Raises:
    FileExistsError: if the folder holds something else.
    OSError: if it cannot be written.
  """
  folder = pathlib.Path(folder).expanduser()
  contents = dict(files(found))
  _check(folder, contents)
  folder.parent.mkdir(parents=True, exist_ok=True)
  trial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    trial.mkdir()
    for name, data in contents.items():
      (trial / name).write_bytes(data)
    _replace(trial, folder)
  finally:
    shutil.rmtree(trial, ignore_errors=True)
  return sum(name.endswith(".txt") for name in contents)


def _check(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Refuses a folder of somebody else, or with files that would be lost."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise FileExistsError(f"{folder} is a file; name a folder")
  names = sorted(path.name for path in folder.iterdir())
  if names and not _is_ours(folder):
    raise FileExistsError(
      f"{folder} holds {names[0]} and is no folder of this command; name "
      "another one, or an empty one"
    )
  others = [name for name in names if name not in contents]
  if others:
    raise FileExistsError(
      f"{folder} holds {_list(others)}, which this command would not write; "
      "move that away, or name another folder"
    )


def _is_ours(folder: pathlib.Path) -> bool:
  with contextlib.suppress(OSError):
    return (folder / README).read_bytes().startswith(TITLE.encode())
  return False


def _list(names: Sequence[str]) -> str:
  more = f" and {len(names) - 1} more" if len(names) > 1 else ""
  return f"{names[0]}{more}"


def _replace(trial: pathlib.Path, folder: pathlib.Path) -> None:
  """Gives a folder its name; the one that has it goes."""
  if not folder.exists():
    trial.rename(folder)
    return
  old = trial.with_suffix(".old")
  folder.rename(old)
  try:
    trial.rename(folder)
  except OSError:
    old.rename(folder)
    raise
  shutil.rmtree(old)


def main(argv: list[str]) -> None:
  output = flags.FLAGS.output
  if len(argv) > 1:
    raise ValueError(f"{argv[1]!r}: name the folder with --output={argv[1]}")
  if not output:
    raise ValueError("name the folder of pictures, --output=FOLDER")
  found = installed()
  count = write(output, found)
  print(
    f"{count} pictures of {len(found)} photographs in {output}; {README} there "
    "says whose they are"
  )
  if len(found) < len(SHIPPED):
    print(f"{len(SHIPPED) - len(found)} more photographs with: {INSTALL}")


def run() -> None:
  """Defines the flag and runs the command."""
  flags.DEFINE_string("output", None, "Folder to write.")
  app.run(_guarded, flags_parser=entry_point.parse)


def _guarded(argv: list[str]) -> None:
  try:
    main(argv)
  except entry_point.EXPECTED as error:
    entry_point.fail(error)


if __name__ == "__main__":
  run()
