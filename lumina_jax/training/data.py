"""The data of a run: from what its config names to batches."""

from __future__ import annotations

import dataclasses
import hashlib

from etils import epath
from jax.sharding import Mesh

from data_pipelines import manifest, shard_folder
from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.batches import Batches
from data_pipelines.buckets import Buckets
from data_pipelines.captioned import CaptionedConfig
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.mixture import Mixture
from data_pipelines.records import Group
from data_pipelines.scan import scan
from data_pipelines.shard_source import ShardSource
from data_pipelines.source import Source
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.files import atomic
from lumina_jax.files.progress import Progress
from lumina_jax.media import IMAGE
from lumina_jax.parallel import processes
from lumina_jax.pretrained.data_encoders import LatentEncoder
from lumina_jax.pretrained.encoders import Encoders
from lumina_jax.training import step as steps
from lumina_jax.training.checkpoint import has_checkpoint
from lumina_jax.training.run_config import RunConfig

PINNED = "data.sha256"


def make_batches(
  config: RunConfig,
  mesh: Mesh | None = None,
  folder: epath.Path | None = None,
  encoders: Encoders = Encoders(),  # noqa: B008
) -> Batches:
  """The batches of a run, each a pure function of its number.

  Args:
    config: of the run.
    mesh: of devices; with it, what this process holds of each batch.
    folder: the workdir, which keeps the list of pictures that a run began
      with: what has come or gone since changes no batch.
    encoders: frozen networks of the run.

  Raises:
    OSError: if data are not there.
    ValueError: if they do not fit the network.
  """
  rows = config.training.batch_rows
  share = steps.process_rows(rows, mesh) if mesh else None
  source = make_source(config, folder, encoders)
  weights = source.weights if isinstance(source, Mixture) else None
  data = config.data
  return Batches(
    source, data.budget, rows, config.seed, share, weights, data.loader
  )


def make_source(
  config: RunConfig,
  folder: epath.Path | None = None,
  encoders: Encoders = Encoders(),  # noqa: B008
) -> Source:
  """The data of a run, by record; arguments as in `make_batches`."""
  data, model = config.data, config.model
  if isinstance(data, CaptionedConfig):
    return captioned_source(config, folder, encoders)
  tokenize = config.network.tokenize
  return data.make_source(model.channels, model.grid, tokenize, config.seed)


def captioned_source(
  config: RunConfig, folder: epath.Path | None, encoders: Encoders
) -> Mixture:
  """Pictures and shards of all sources, by their weights."""
  data = config.data
  weights = data.weights or (1.0,) * len(data.sources)
  sources: list[Source] = []
  each: list[float] = []
  for named, weight in zip(data.sources, weights, strict=True):
    if _is_shards(named):
      sources.append(_shards(config, named))
      each.append(weight)
      continue
    if data.workers and (encoders.codec or encoders.text):
      raise ValueError(
        f"data.workers = {data.workers}: other processes have no devices to "
        f"encode the pictures of {named} on; set it to 0 and data.threads "
        "higher, or encode them before by lumina_jax.encode"
      )
    for group in _groups(named, folder, data.bad_limit):
      sources.append(_images(config, group, encoders))
      each.append(weight * group.weight)
  return Mixture(sources, each)


def pin(folder: epath.Path, batches: Batches, begun: bool) -> None:
  """Writes down what a run learns from, or compares it with what it had.

  Args:
    folder: the workdir.
    batches: of the run.
    begun: whether it must go on with the very data that it began with.

  Raises:
    ValueError: if it must, and they are others.
  """
  path = folder / PINNED
  text = atomic.read_text(path)
  if begun and text is not None and text.strip() != batches.fingerprint:
    raise ValueError(
      f"the data are not those that the run in {folder} began with: other "
      "records, sizes or weights. Bring the old ones back, name another "
      "--workdir, or go on with these by --allow_config_change"
    )
  atomic.write_text(path, f"{batches.fingerprint}\n")


def _is_shards(source: str) -> bool:
  folder = epath.Path(source).expanduser()
  names = shard_folder.SETTINGS, shard_folder.MANIFEST
  return any((folder / name).exists() for name in names)


def _images(config: RunConfig, group: Group, encoders: Encoders) -> ImageSource:
  data, model, text = config.data, config.model, config.text_encoder
  latents = encoders.codec and LatentEncoder(encoders.codec)
  factor = latents.factor if latents else 1
  patch = model.patch[-1]
  if config.medium != IMAGE.name or model.patch[0] != patch:
    raise ValueError(
      f"medium = {config.medium!r}, model.patch = {model.patch}: folders of "
      "images need medium 'image' and square patches"
    )
  cfg = ImageSourceConfig(
    channels=3 if latents else model.channels,
    bucket_choices=data.bucket_choices,
    caption_dropout=data.condition_dropout,
    flip=data.flip,
    max_words=max_words(config),
  )
  frozen = isinstance(text, TextFeaturesConfig)
  return ImageSource(
    group.records,
    Buckets(data.resolutions, patch * factor, data.max_aspect_ratio),
    lambda height, width: model.grid(height // factor, width // factor),
    encoders.text.encode_one if frozen else config.network.tokenize,
    cfg,
    config.seed,
    latents and latents.to_latents,
    encoders.text.length if frozen else None,
  )


def _shards(config: RunConfig, folder: str) -> ShardSource:
  model, text = config.model, config.text_encoder
  frozen = text if isinstance(text, TextFeaturesConfig) else None
  source = ShardSource(
    folder,
    model.grid,
    None if frozen else config.network.tokenize,
    config.data.condition_dropout,
    config.seed,
  )
  source.check_network(
    model.channels,
    frozen and dataclasses.asdict(frozen) | {"width": model.text_width},
  )
  return source


def max_words(config: RunConfig) -> int:
  """S of the longest caption that the network reads; a class is one word."""
  match config.text_encoder:
    case None:
      return 1
    case TextFeaturesConfig(max_tokens=most):
      return most
    case text:
      return text.max_words


def _groups(
  source: str, folder: epath.Path | None, limit: float
) -> list[Group]:
  """Pictures of a source, as the run found them when it began.

  Process 0 looks at them, and the others read what it has found.
  """
  if folder is None:
    return _scan(source, limit)
  digest = hashlib.sha256(source.encode()).hexdigest()[:12]
  path = epath.Path(folder) / f"pictures_{digest}.jsonl"

  def look():
    # The list of a run that never began is of no use.
    if path.exists() and has_checkpoint(folder):
      print(f"pictures of {source} as this run found them: {path}", flush=True)
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      manifest.write_manifest(path, _scan(source, limit))

  processes.on_first(look)
  return manifest.read_manifest(path)


def _scan(source: str, limit: float) -> list[Group]:
  print(f"looking at the pictures of {source}", flush=True)
  with Progress("looking", 1, unit="pictures", note="") as bar:
    groups = scan(source, lambda done, total: bar.show(done, total=total))
  good = sum(len(group.records) for group in groups)
  bad = [error for group in groups for error in group.errors]
  BadRecordCounter(limit).add(bad, good + len(bad))
  print(f"{good} pictures with captions, {len(bad)} left out", flush=True)
  return groups
