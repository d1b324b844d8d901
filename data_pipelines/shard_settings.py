"""What to encode of a source, and the settings that its shards depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines import shards
from data_pipelines.buckets import Buckets
from data_pipelines.images import Images, ImagesConfig
from data_pipelines.records import Group, Record
from data_pipelines.shard_job import Job
from lumina_jax.tokens import Grid

if TYPE_CHECKING:
  from lumina_jax.pretrained.data_encoders import PictureEncoder, TextFeatures


@dataclasses.dataclass(frozen=True)
class Crops:
  """How pictures are cropped; see `Buckets` and `ImagesConfig`."""

  sides: tuple[int, ...]
  unit: int
  longest: float
  choices: int
  flip: bool
  channels: int
  seed: int


def make_job(
  groups: Sequence[Group],
  crops: Crops,
  pictures: PictureEncoder | None,
  captions: TextFeatures | None,
  epochs: int = 1,
  records_per_shard: int = 1000,
  batch_size: int = 8,
  threads: int = 4,
  root: str = "",
) -> tuple[Job, dict[str, Any]]:
  """What to encode, and the settings that its bytes depend on.

  Args:
    groups: of `scan`.
    crops: how pictures are cropped.
    pictures: autoencoder; None = pixels.
    captions: language model; None = text.
    epochs: crops of each picture.
    records_per_shard: pictures of a file.
    batch_size: pictures that are encoded at once.
    threads: that load pictures.
    root: folder of the source, which names leave out.

  Raises:
    ValueError: if they do not fit together.
  """
  if epochs < 1:
    raise ValueError(f"epochs = {epochs}: at least 1")
  records = _all(groups)
  buckets = Buckets(crops.sides, crops.unit, crops.longest)
  job = Job(
    [_source(records, buckets, crops, epoch) for epoch in range(epochs)],
    [record.captions for record in records],
    records_per_shard,
    pictures and pictures.moments,
    captions,
    batch_size,
    threads,
    root,
  )
  settings = {
    "version": shards.VERSION,
    "source": {"path": root, "sha256": _digest(records, root)},
    "crops": dataclasses.asdict(crops),
    "buckets": " ".join(
      f"{h}x{w}" for side in buckets.sides for h, w in buckets.of(side)
    ),
    "records": job.total,
    "epochs": epochs,
    "records_per_shard": records_per_shard,
    "batch_size": batch_size,
    "media": "latents" if pictures else "pixels",
    "channels": pictures.channels if pictures else crops.channels,
    "autoencoder": pictures and pictures.identity,
    "text_encoder": captions and captions.identity,
  }
  return job, settings


def _all(groups: Sequence[Group]) -> list[Record]:
  """Records of all groups, which no shard tells apart."""
  weights = {group.name: group.weight for group in groups}
  if len(set(weights.values())) > 1:
    raise ValueError(
      f"the entries of this source have different ratios, {weights}; encode "
      "each into a folder of its own, and mix these when training"
    )
  return [record for group in groups for record in group.records]


def _source(
  records: list[Record], buckets: Buckets, crops: Crops, epoch: int
) -> Images:
  """Pictures of an epoch, each with another bucket of those that fit."""
  unit, word = (crops.unit, crops.unit), np.zeros((1, 1), np.int32)
  return Images(
    records,
    buckets,
    lambda height, width: Grid((height, width), unit, False, False),
    lambda caption: word,  # Nothing is tokenized yet.
    ImagesConfig(crops.channels, crops.choices, 0.0, crops.flip, 1),
    crops.seed + epoch,
  )


def _digest(records: list[Record], root: str) -> str:
  digest = hashlib.sha256()
  for r in records:
    facts = [r.path.removeprefix(root), r.captions, r.height, r.width]
    digest.update(f"{json.dumps(facts)}\n".encode())
  return digest.hexdigest()
