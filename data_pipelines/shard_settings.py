"""Makes the job that encodes a source, and the settings of its shards."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines import shard_folder
from data_pipelines.buckets import Buckets
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.records import Group, Record
from data_pipelines.shard_job import ShardJob
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class CropSettings:
  """How images are cropped; see `Buckets` and `ImageSourceConfig`."""

  resolutions: tuple[int, ...]
  unit: int
  max_aspect_ratio: float
  bucket_choices: int
  flip: bool
  channels: int
  seed: int


class LatentEncoder(Protocol):
  """Encodes samples.

  Attributes:
    channels: channels C of latents.
    factor: pixels per latent along a side.
    identity: which autoencoder it is, as JSON values.
  """

  channels: int
  factor: int
  identity: dict[str, Any]

  def moments(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `shard_job.Moments`."""


class FeatureEncoder(Protocol):
  """Encodes captions.

  Attributes:
    identity: which language model it is, as JSON values.
  """

  identity: dict[str, Any]

  def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
    """See `shard_job.Features`."""


def make_job(
  groups: Sequence[Group],
  crops: CropSettings,
  latents: LatentEncoder | None,
  features: FeatureEncoder | None,
  epochs: int = 1,
  root: str = "",
  **options: int,
) -> tuple[ShardJob, dict[str, Any]]:
  """Returns a job, and the settings that the bytes of its shards depend on.

  Args:
    groups: records of the source, from `scan`.
    crops: how images are cropped.
    latents: autoencoder; None = pixels are stored.
    features: language model; None = text is stored.
    epochs: number of crops of each image.
    root: folder of the source, which names leave out.
    **options: records_per_shard, batch_size and threads of `ShardJob`.

  Raises:
    ValueError: if a number is out of range, or weights of groups differ.
  """
  if epochs < 1:
    raise ValueError(f"epochs = {epochs}: at least 1")
  records = _all_records(groups)
  buckets = Buckets(crops.resolutions, crops.unit, crops.max_aspect_ratio)
  job = ShardJob(
    [_source(records, buckets, crops, epoch) for epoch in range(epochs)],
    [record.captions for record in records],
    moments=latents and latents.moments,
    features=features,
    root=root,
    **options,
  )
  settings = {
    "version": shard_folder.VERSION,
    "source": {"path": root, "sha256": _digest(records, root)},
    "crops": dataclasses.asdict(crops),
    "buckets": " ".join(
      f"{h}x{w}" for side in buckets.resolutions for h, w in buckets.sizes(side)
    ),
    "records": job.total,
    "epochs": epochs,
    "records_per_shard": job.records_per_shard,
    "batch_size": job.batch_size,
    "media": "latents" if latents else "pixels",
    "channels": latents.channels if latents else crops.channels,
    "autoencoder": latents and latents.identity,
    "text_encoder": features and features.identity,
  }
  return job, settings


def _all_records(groups: Sequence[Group]) -> list[Record]:
  """Records of all groups; shards do not keep the weights of groups."""
  weights = {group.name: group.weight for group in groups}
  if len(set(weights.values())) > 1:
    raise ValueError(
      f"the entries of this source have different ratios, {weights}; encode "
      "each into its own folder, and mix the folders in training"
    )
  return [record for group in groups for record in group.records]


def _source(
  records: list[Record], buckets: Buckets, crops: CropSettings, epoch: int
) -> ImageSource:
  """Images of an epoch; each epoch chooses other buckets."""
  unit, word = (crops.unit, crops.unit), np.zeros((1, 1), np.int32)
  return ImageSource(
    records,
    buckets,
    lambda height, width: Grid((height, width), unit, False, False),
    lambda caption: word,  # Training tokenizes.
    ImageSourceConfig(crops.channels, crops.bucket_choices, 0.0, crops.flip, 1),
    crops.seed + epoch,
  )


def _digest(records: list[Record], root: str) -> str:
  digest = hashlib.sha256()
  for r in records:
    values = [r.path.removeprefix(root), r.captions, r.height, r.width]
    digest.update(f"{json.dumps(values)}\n".encode())
  return digest.hexdigest()
