"""The original's loader of training images: a torch DataLoader and PIL.

Its steps (Lumina-T2X): choose one of the four buckets that fit best; halve the
image by the mean of 2 x 2 pixels while both sides are at least twice the
bucket's; resize it by cubic interpolation to cover the bucket; crop it at a
random position; scale values to [-1, 1], channels first. Our tokenizer encodes
the captions.
"""

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


class Images(Dataset):
  """Record r -> pixels `f32[3, H, W]` and codes `i32[S, K]`."""

  def __init__(
    self,
    records: Sequence[Record],
    sizes: Sequence[Size],
    tokenize: Callable[[str], np.ndarray],
    draft: bool,
  ):
    """Creates the dataset.

    Args:
      records: images and captions.
      sizes: height and width in pixels of the buckets.
      tokenize: caption -> codes.
      draft: whether the JPEG decoder may halve images.
    """
    self._records, self._sizes = records, sizes
    self._tokenize, self._draft = tokenize, draft

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Item:
    record = self._records[index]
    with Image.open(record.path) as image:
      size = random.choice(best_fit(self._sizes, image.height, image.width))
      position = random.random(), random.random()
      x = crop(image, size, position, self._draft)
    caption = random.choice(record.captions)
    return x, torch.from_numpy(self._tokenize(caption))


def best_fit(sizes: Sequence[Size], height: int, width: int) -> list[Size]:
  """The buckets whose crops keep most of an image."""

  def kept(size):
    scales = size[0] / height, size[1] / width
    return min(scales) / max(scales)

  return sorted(sizes, key=kept)[-CHOICES:]


def crop(
  image: Image.Image, size: Size, position: tuple[float, float], draft: bool
) -> torch.Tensor:
  """A crop `f32[3, H, W]` at a position from 0 (top, left) to below 1."""
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
  top = int(position[0] * (image.height - height + 1))
  left = int(position[1] * (image.width - width + 1))
  image = image.crop((left, top, left + width, top + height))
  x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
  return x.float().div_(255).sub_(0.5).div_(0.5)


def batches(
  dataset: Images, indices: Sequence[int], rows: int, workers: int
) -> Iterator[list[Item]]:
  """Loads records by index in batches of so many rows."""
  return iter(
    DataLoader(
      dataset,
      rows,
      sampler=indices,
      num_workers=workers,
      collate_fn=list,
    )
  )


def use_one_thread() -> None:
  """Makes torch compute in one thread, as DataLoader workers do."""
  torch.set_num_threads(1)
