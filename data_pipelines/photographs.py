"""Writes a folder of photographs with captions, to try a run on real images.

  python -m data_pipelines.photographs --output=photographs

The photographs are those that scikit-learn ships and, if it is installed, those
of scikit-image that need no download and state their licence. Each is cut into
overlapping crops of several aspect ratios. A caption names the objects in its
crop. The same packages give the same files.
"""

import argparse
import importlib.metadata
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence

from data_pipelines.shipped_photographs import (
  SHIPPED,
  Box,
  Photograph,
  installed,
)
from lumina_jax.media import image_file

README = "README.md"
TITLE = "# Photographs cut into crops"  # First line of the readme.
RATIOS = (1.0, 2 / 3, 3 / 2, 1 / 2, 2.0)  # Width over height.
SMALL = 0.7  # Sides of the small crops, relative to the large ones.
MAX_SIDE = 640  # Pixels of a crop.
WHOLE = 0.9  # Share of an object in a crop from which it is named.
VISIBLE = 0.15  # Share of an object from which a part of it is named.
FILLED = 0.1  # Share of the crop from which a part of an object is named.
CENTRED = 0.08  # Largest distance from the centre of a crop in the middle.
INSTALL = "pip install scikit-image"


def crops(width: int, height: int) -> list[Box]:
  """Boxes of the crops of a photograph, without duplicates.

  For each ratio, the largest crops at both ends, and smaller ones in two
  opposite corners.

  Args:
    width: width of the photograph in pixels.
    height: height of the photograph in pixels.

  Returns:
    (left, top, right, bottom) in pixels.
  """
  boxes = []
  for number, ratio in enumerate(RATIOS):
    for scale in (1.0, SMALL):
      w = scale * min(width, height * ratio)
      size = round(w), round(w / ratio)
      corners = ((0, 0), (1, 1)) if number % 2 else ((1, 0), (0, 1))
      boxes += [_box(width, height, size, corner) for corner in corners]
  return list(dict.fromkeys(boxes))


def _box(
  width: int, height: int, size: tuple[int, int], corner: tuple[int, int]
) -> Box:
  left = corner[0] * (width - size[0])
  top = corner[1] * (height - size[1])
  return left, top, left + size[0], top + size[1]


def caption(photograph: Photograph, crop: Box) -> str:
  """Describes a crop of a photograph.

  Args:
    photograph: the whole.
    crop: (left, top, right, bottom), as shares of width and height.
  """
  names = []
  for name, box in photograph.objects:
    common = _common_area(box, crop)
    share = common / _area(box)
    if share >= WHOLE:
      names.append(name)
    elif share >= VISIBLE or common / _area(crop) >= FILLED:
      names.append(f"part of {name}")
  return ", ".join([*names, photograph.setting, *_position(crop)])


def _area(box: Box) -> float:
  return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _common_area(one: Box, other: Box) -> float:
  left, top = max(one[0], other[0]), max(one[1], other[1])
  return _area((left, top, min(one[2], other[2]), min(one[3], other[3])))


def _position(crop: Box) -> list[str]:
  """Where in the photograph a crop lies; [] = in the middle."""
  x, y = (crop[0] + crop[2] - 1) / 2, (crop[1] + crop[3] - 1) / 2
  names = [
    low if offset < 0 else high
    for offset, low, high in ((y, "upper", "lower"), (x, "left", "right"))
    if abs(offset) > CENTRED
  ]
  return [f"{' '.join(names)} part"] if names else []


def files(
  photographs: Mapping[Photograph, pathlib.Path],
) -> Iterator[tuple[str, bytes]]:
  """Yields names and contents of all files of the folder, the readme last.

  Args:
    photographs: photographs and their files, see `installed`.

  Raises:
    UnreadableImage: if a photograph cannot be read.
  """
  for photograph, path in photographs.items():
    with image_file.open_image(str(path)) as image:
      image.load()
    width, height = image.size
    for number, box in enumerate(crops(width, height)):
      stem = f"{path.stem}_{number:02d}"
      suffix, data = image_file.encode(image.crop(box), MAX_SIDE)
      yield f"{stem}{suffix}", data
      share = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
      yield f"{stem}.txt", f"{caption(photograph, share)}\n".encode()
  yield README, _readme(photographs).encode()


def _readme(photographs: Mapping[Photograph, pathlib.Path]) -> str:
  packages = sorted({photograph.distribution for photograph in photographs})
  versions = [f"{p} {importlib.metadata.version(p)}" for p in packages]
  credits = [f"- {path.name}: {p.credit}" for p, path in photographs.items()]
  lines = [
    TITLE,
    "",
    "Made by python -m data_pipelines.photographs from "
    f"{' and '.join(versions)}: crops of these photographs, encoded again.",
    "The name of a crop begins with that of its photograph.",
    "",
    *credits,
  ]
  return "\n".join(lines) + "\n"


def write(
  folder: str | os.PathLike, photographs: Mapping[Photograph, pathlib.Path]
) -> int:
  """Writes the folder, whole or not at all.

  Args:
    folder: a folder that does not exist, is empty, or was written by this
      function, which is replaced.
    photographs: photographs and their files, see `installed`.

  Returns:
    Number of images in the folder.

  Raises:
    FileExistsError: if the folder holds something else.
    OSError: if it cannot be written.
  """
  folder = pathlib.Path(folder).expanduser()
  contents = dict(files(photographs))
  _check(folder, contents)
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    temporary.mkdir()
    for name, data in contents.items():
      (temporary / name).write_bytes(data)
    _replace(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return sum(name.endswith(".txt") for name in contents)


def _check(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Refuses folders of other origin, or with files that would be lost."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise FileExistsError(f"{folder} is a file; name a folder")
  names = sorted(path.name for path in folder.iterdir())
  readme = folder / README
  ours = readme.is_file() and readme.read_bytes().startswith(TITLE.encode())
  others = [name for name in names if not ours or name not in contents]
  if others:
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    raise FileExistsError(
      f"{folder} holds {others[0]}{more}, which this command did not write; "
      "move that away, or name another folder"
    )


def _replace(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames a folder; the one that had its name is removed."""
  if not folder.exists():
    temporary.rename(folder)
    return
  old = temporary.with_suffix(".old")
  folder.rename(old)
  try:
    temporary.rename(folder)
  except OSError:
    old.rename(folder)
    raise
  shutil.rmtree(old)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command; errors of input become one line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", required=True, help="Folder to write.")
  output = parser.parse_args(argv).output
  photographs = installed()
  try:
    count = write(output, photographs)
  except (OSError, image_file.UnreadableImage) as error:
    sys.exit(f"\nerror: {error}")
  print(
    f"{count} images of {len(photographs)} photographs in {output}; {README} "
    "there credits their authors"
  )
  missing = len(SHIPPED) - len(photographs)
  if missing:
    print(f"{missing} more photographs with: {INSTALL}")


if __name__ == "__main__":
  main()
