"""Pictures for training as the original reads them: a torch DataLoader and PIL.

Its steps (Lumina-T2X): one of the four buckets that fit best; halved by the
mean of 2 x 2 pixels while both sides are at least twice as long as the
bucket's; resized by cubic interpolation to cover it; cut at random; values in
[-1, 1], channels first. Captions are spelled by our tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_pipelines.buckets import Size
from data_pipelines.records import Record

CHOICES = 4
Item = tuple[torch.Tensor, torch.Tensor]


class Pictures(Dataset):
  """Record r -> pixels `f32[3, H, W]` and codes `i32[S, K]`."""

  def __init__(
    self,
    records: Sequence[Record],
    sizes: Sequence[Size],
    tokenize: Callable[[str], np.ndarray],
    draft: bool,
  ):
    """Takes records.

    Args:
      records: pictures and captions.
      sizes: height and width in pixels of the buckets.
      tokenize: caption -> codes.
      draft: whether the decoder of JPEGs halves them.
    """
    self._records, self._sizes = records, sizes
    self._tokenize, self._draft = tokenize, draft

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, number: int) -> Item:
    record = self._records[number]
    with Image.open(record.path) as image:
      size = random.choice(best(self._sizes, image.height, image.width))
      places = random.random(), random.random()
      x = cropped(image, size, places, self._draft)
    caption = random.choice(record.captions)
    return x, torch.from_numpy(self._tokenize(caption))


def best(sizes: Sequence[Size], height: int, width: int) -> list[Size]:
  """The buckets that show most of a picture."""

  def shown(size):
    scales = size[0] / height, size[1] / width
    return min(scales) / max(scales)

  return sorted(sizes, key=shown)[-CHOICES:]


def cropped(
  image: Image.Image, size: Size, places: tuple[float, float], draft: bool
) -> torch.Tensor:
  """A crop `f32[3, H, W]`, cut at places from 0 (top, left) to below 1."""
  height, width = size
  if draft:
    image.draft("RGB", (width, height))
  image = image.convert("RGB")
  while min(image.width // width, image.height // height) >= 2:
    half = image.width // 2, image.height // 2
    image = image.resize(half, Image.Resampling.BOX)
  scale = max(width / image.width, height / image.height)
  cover = round(image.width * scale), round(image.height * scale)
  image = image.resize(cover, Image.Resampling.BICUBIC)
  top = int(places[0] * (image.height - height + 1))
  left = int(places[1] * (image.width - width + 1))
  image = image.crop((left, top, left + width, top + height))
  x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
  return x.float().div_(255).sub_(0.5).div_(0.5)


def batches(
  dataset: Pictures, numbers: Sequence[int], rows: int, workers: int
) -> Iterator[list[Item]]:
  """Records of those numbers, as many at a time as a batch has rows."""
  return iter(
    DataLoader(
      dataset,
      rows,
      sampler=numbers,
      num_workers=workers,
      collate_fn=list,
    )
  )


def describe() -> str:
  """Its version; it shall compute in one thread, as in its workers."""
  torch.set_num_threads(1)
  return f"torch {torch.__version__}"
