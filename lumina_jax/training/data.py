"""The data of a run: from the sources in its config to batches."""

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
from lumina_jax.media import IMAGE
from lumina_jax.parallel import processes
from lumina_jax.pretrained.data_encoders import LatentEncoder
from lumina_jax.pretrained.encoders import Encoders
from lumina_jax.training.restore import has_checkpoint
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.step import process_rows

FINGERPRINT = "data.sha256"
NO_ENCODERS = Encoders()


def make_batches(
  config: RunConfig,
  mesh: Mesh | None = None,
  folder: epath.Path | None = None,
  encoders: Encoders = NO_ENCODERS,
) -> Batches:
  """The batches of a run, each a pure function of its number.

  Args:
    config: config of the run.
    mesh: mesh of devices; with it, batches hold this process's rows only.
    folder: workdir, which keeps the list of images that the run started with,
      so that images added or deleted later change no batch.
    encoders: frozen networks of the run.

  Raises:
    OSError: if data are missing.
    ValueError: if they do not fit the network.
  """
  rows = config.training.batch_rows
  share = process_rows(rows, mesh) if mesh else None
  source = make_source(config, folder, encoders)
  weights = source.weights if isinstance(source, Mixture) else None
  data = config.data
  return Batches(
    source, data.budget, rows, config.seed, share, weights, data.loader
  )


def make_source(
  config: RunConfig,
  folder: epath.Path | None = None,
  encoders: Encoders = NO_ENCODERS,
) -> Source:
  """The data of a run by record; arguments as in `make_batches`."""
  data, model = config.data, config.model
  if isinstance(data, CaptionedConfig):
    return captioned_source(config, folder, encoders)
  tokenize = config.network.tokenize
  return data.make_source(model.channels, model.grid, tokenize, config.seed)


def captioned_source(
  config: RunConfig, folder: epath.Path | None, encoders: Encoders
) -> Mixture:
  """Mixes images and shards of all sources by their weights.

  Raises:
    OSError: if a source is missing.
    ValueError: if one does not fit the network, or needs devices in workers.
  """
  data = config.data
  weights = data.weights or (1.0,) * len(data.sources)
  sources: list[Source] = []
  source_weights: list[float] = []
  for name, weight in zip(data.sources, weights, strict=True):
    if _is_shard_folder(name):
      sources.append(_shards(config, name))
      source_weights.append(weight)
      continue
    if data.workers and (encoders.codec or encoders.text):
      raise ValueError(
        f"data.workers = {data.workers}: worker processes have no devices to "
        f"encode the images of {name} on; set it to 0 and raise data.threads, "
        "or encode the images in advance by lumina_jax.encode"
      )
    for group in _image_groups(name, folder, data.bad_limit):
      sources.append(_images(config, group, encoders))
      source_weights.append(weight * group.weight)
  return Mixture(sources, source_weights)


def check_fingerprint(
  folder: epath.Path, batches: Batches, resumed: bool
) -> None:
  """Stores the fingerprint of the data, or compares it with the stored one.

  Args:
    folder: workdir of the run.
    batches: batches of the run.
    resumed: whether the data must be those that the run started with.

  Raises:
    ValueError: if they must, and they differ.
  """
  path = folder / FINGERPRINT
  text = atomic.read_text(path)
  if resumed and text is not None and text.strip() != batches.fingerprint:
    raise ValueError(
      f"the data are not those that the run in {folder} started with: records, "
      "sizes or weights differ. Restore the old data, choose another "
      "--workdir, or continue with these by --allow_config_change"
    )
  atomic.write_text(path, f"{batches.fingerprint}\n")


def _is_shard_folder(source: str) -> bool:
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
  """The most words S of a caption that the network reads; 1 for a class."""
  match config.text_encoder:
    case None:
      return 1
    case TextFeaturesConfig(max_tokens=words):
      return words
    case text:
      return text.max_words


def _image_groups(
  source: str, folder: epath.Path | None, bad_limit: float
) -> list[Group]:
  """The images of a source as they were when the run started.

  Process 0 scans them, and the others read its list.
  """
  if folder is None:
    return _scan(source, bad_limit)
  digest = hashlib.sha256(source.encode()).hexdigest()[:12]
  path = epath.Path(folder) / f"images_{digest}.jsonl"

  def scan_once():
    # Without a checkpoint the run has not started: its list is outdated.
    if path.exists() and has_checkpoint(folder):
      print(f"images of {source}, as listed in {path}", flush=True)
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      manifest.write_manifest(path, _scan(source, bad_limit))

  processes.on_first(scan_once)
  return manifest.read_manifest(path)


def _scan(source: str, bad_limit: float) -> list[Group]:
  print(f"scanning the images of {source}", flush=True)
  groups = scan(source)
  good = sum(len(group.records) for group in groups)
  bad = [error for group in groups for error in group.errors]
  BadRecordCounter(bad_limit).add(bad, good + len(bad))
  print(f"{good} images with captions, {len(bad)} left out", flush=True)
  return groups
