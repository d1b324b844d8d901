"""Whether crops of ours and of PyTorch's loader show the same."""

from __future__ import annotations

import math
import pathlib

import numpy as np
from PIL import Image

from benchmarks import torch_loader
from benchmarks.readers import PATCH
from data_pipelines.buckets import Buckets, Size
from data_pipelines.records import Record
from lumina_jax.media import crop

# Of values from -1 to 1, the mean of the differences, and what all but a
# thousandth keep to. PIL makes a picture half a shade brighter each time that
# it is halved by resizing, as theirs is; 2 / 255 is a shade.
MEAN, MOST = 0.01, 0.03
SLACK = PATCH  # Pixels of a resized picture beyond its crop.


def check(
  records: tuple[Record, ...], side: int, longer: int, folder: pathlib.Path
) -> float:
  """Largest mean difference of crops of both at one place.

  The pictures have sizes that every step divides: else theirs, which drops
  what halving leaves over, stretches them by up to a pixel, and ours does not.

  Args:
    records: pictures, one for each bucket that is tried, the squarest.
    side: of the square whose buckets are taken.
    longer: side of a picture.
    folder: for pictures.

  Raises:
    ValueError: if they are not alike.
  """
  sizes = Buckets([side], PATCH).sizes(side)
  first = (len(sizes) - len(records)) // 2
  sizes = sizes[max(first, 0) :]
  scale = 9 / 8 * 2 ** max(0, int(math.log2(longer / side / 1.125)))
  worst = 0.0
  for record, size in zip(records, sizes, strict=False):
    path = folder / f"alike_{size[0]}_{size[1]}.jpg"
    write(path, record.path, size, scale)
    for draft in (True, False):
      apart = np.abs(differences(str(path), size, draft))
      mean, most = float(apart.mean()), float(np.quantile(apart, 0.999))
      worst = max(worst, mean)
      if mean > MEAN or most > MOST:
        raise ValueError(
          f"crops of {size} with draft={draft}: ours and theirs differ by "
          f"{mean:.3g} in the mean (up to {MEAN} passes), a thousandth of the "
          f"values by more than {most:.3g} ({MOST}); they do not do the same "
          "work"
        )
  return worst


def write(path: pathlib.Path, model: str, size: Size, scale: float) -> None:
  """A picture that covers a bucket at that scale, and leaves some slack."""
  height, width = int(size[0] * scale), int((size[1] + SLACK) * scale)
  with Image.open(model) as image:
    image.resize((width, height)).save(path, quality=90)


def differences(path: str, size: Size, draft: bool) -> np.ndarray:
  """`f32[H, W, 3]`: our crop less theirs at the same place."""
  ours = crop.load(path, size, np.random.default_rng(1), 3, False, draft)
  place = np.random.default_rng(1).random()
  with Image.open(path) as image:
    theirs = torch_loader.cropped(image, size, (place, place), draft)
  return ours - theirs.permute(1, 2, 0).numpy()
