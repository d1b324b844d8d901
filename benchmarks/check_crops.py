"""Checks that crops of ours and of PyTorch's loader are equal."""

import math
import pathlib

import numpy as np
from PIL import Image

from benchmarks import torch_loader
from benchmarks.loaders import PATCH
from data_pipelines.buckets import Buckets, Size
from data_pipelines.records import Record
from lumina_jax.media import crop

# Largest mean and 99.9 % quantile of the differences, of values from -1 to 1.
# Each halving by PIL, as in the original's steps, brightens an image by half a
# level; 2 / 255 is a level.
MEAN, QUANTILE = 0.01, 0.03
SLACK = PATCH  # Pixels of a resized image beyond its crop.


def check(
  records: tuple[Record, ...], side: int, longer: int, folder: pathlib.Path
) -> float:
  """Compares crops of both loaders at the same positions.

  Every step divides the sizes of the images. Otherwise the original's halving
  drops the remainder and stretches them by up to a pixel, and ours does not.

  Args:
    records: images, one for each bucket to compare, the squarest ones.
    side: side of the square whose area the buckets have.
    longer: longer side of an image.
    folder: folder for resized images.

  Returns:
    The largest mean difference.

  Raises:
    ValueError: if the crops differ.
  """
  sizes = Buckets([side], PATCH).sizes(side)
  first = (len(sizes) - len(records)) // 2
  sizes = sizes[max(first, 0) :]
  scale = 9 / 8 * 2 ** max(0, int(math.log2(longer / side / 1.125)))
  worst = 0.0
  for record, size in zip(records, sizes, strict=False):
    path = folder / f"check_{size[0]}_{size[1]}.jpg"
    write(path, record.path, size, scale)
    for draft in (True, False):
      error = np.abs(difference(str(path), size, draft))
      mean, quantile = float(error.mean()), float(np.quantile(error, 0.999))
      worst = max(worst, mean)
      if mean > MEAN or quantile > QUANTILE:
        raise ValueError(
          f"crops of {size} with draft={draft} differ: mean {mean:.3g} (limit "
          f"{MEAN}), 99.9 % quantile {quantile:.3g} (limit {QUANTILE}); ours "
          "and PyTorch's do not do the same work"
        )
  return worst


def write(path: pathlib.Path, source: str, size: Size, scale: float) -> None:
  """Writes an image that covers a bucket at a scale, with some slack."""
  height, width = int(size[0] * scale), int((size[1] + SLACK) * scale)
  with Image.open(source) as image:
    image.resize((width, height)).save(path, quality=90)


def difference(path: str, size: Size, draft: bool) -> np.ndarray:
  """Our crop minus PyTorch's at the same position, `f32[H, W, 3]`."""
  ours = crop.load(path, size, np.random.default_rng(1), 3, False, draft)
  position = np.random.default_rng(1).random()
  with Image.open(path) as image:
    theirs = torch_loader.crop(image, size, (position, position), draft)
  return ours - theirs.permute(1, 2, 0).numpy()
