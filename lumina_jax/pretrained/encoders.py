"""The networks around the backbone: a language model and a codec."""

import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import jax

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.codec import Codec
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.encoders.tokenizer import Tokenizer
from lumina_jax.interop import destination, licences
from lumina_jax.interop.language import open_language
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.media import Medium
from lumina_jax.model.network import Network
from lumina_jax.pretrained import codecs, hub
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.components import Components

Name = str | os.PathLike  # A folder, or "owner/name" on the hub.
Files = dict[str, pathlib.Path]  # Folders of components by name.

FRAMES = 8  # Frames of a video that are encoded or decoded at once.
BATCH = 4  # Captions that are encoded at once; most calls have two.
REMEMBERED = 4096  # Captions of a run whose features stay in memory.
# Files of a language model and of its tokenizer.
FILES = {
  "text_encoder": (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
  ),
  "tokenizer": (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
  ),
}


@dataclasses.dataclass(frozen=True)
class EncodersConfig:
  """Frozen networks of a run; each names the folder or hub name of its weights.

  Attributes:
    vae: autoencoder whose latents the network learns; "" = it learns samples.
    text: language model that encodes captions; "" = the embedded encoder.
    tokenizer: of the language model; "" = beside the model.
    dtype: that the language model computes in.
  """

  vae: str = ""
  text: str = ""
  tokenizer: str = ""
  dtype: str = "bfloat16"


class Encoders(NamedTuple):
  """Frozen networks of a run; each process has its own, on its first device.

  Attributes:
    codec: between samples and latents; None = none.
    text: language model; None = none.
  """

  codec: Codec | None = None
  text: CaptionEncoder | None = None


def of_run(
  config: EncodersConfig, medium: Medium, network: Network
) -> Encoders:
  """Loads the encoders of a run; the language model loads on first use.

  Raises:
    FileNotFoundError: if a folder is missing.
    ValueError: if an encoder does not fit the network, naming the key.
  """
  options = Options(dtype=config.dtype)
  found, _ = codec(config.vae or None, medium, network.model, options)
  text, cfg = None, network.text_encoder
  if isinstance(cfg, TextFeaturesConfig):
    tokenizer = config.tokenizer or None
    text, _ = text_encoder(config.text, tokenizer, cfg, options)
    text.reserve(REMEMBERED)
  return Encoders(found, text)


def codec(
  name: Name | None, medium: Medium, model: ModelConfig, options: Options
) -> tuple[Codec | None, Files]:
  """The codec of a pipeline, and its folder as "vae".

  Args:
    name: of its folder, unless the options name another one.
    medium: of the samples; an autoencoder of images serves videos by frames.
    model: the backbone, which generates its latents.
    options: of the caller.

  Raises:
    ValueError: if the latents are not those that the network generates.
  """
  name = options.vae or name
  if options.vae is False or name is None:
    return None, {}
  files = {}
  if hasattr(name, "decode"):  # A codec that is loaded already.
    found, name = name, "vae"
  else:
    folder = component_folder(name, "vae", options)
    found, files = codecs.load(folder, options.mesh), {"vae": folder}
  if found.latent_channels != model.channels:
    raise ValueError(
      f"{name}: its latents have {found.latent_channels} channels, the network "
      f"generates {model.channels}; pass the autoencoder that it was trained "
      "with, vae="
    )
  missing = len(medium.axes) - len(found.factors)
  if isinstance(found, Autoencoder) and missing == 1:
    found = Autoencoder(
      found.cfg, found.params, found.tile, found.frames_at_once or FRAMES, 1
    )
  elif missing:
    raise ValueError(
      f"{name}: its latents have {len(found.factors)} axes, {medium.name} has "
      f"{len(medium.axes)}"
    )
  return found, files


def text_encoder(
  name: Name | None,
  tokenizer: Name | None,
  cfg: TextFeaturesConfig,
  options: Options,
) -> tuple[CaptionEncoder | None, Files]:
  """The language model of a pipeline; its weights load with the first caption.

  Args:
    name: of its folder, unless the options name another one.
    tokenizer: of its folder; None = beside the model.
    cfg: how the network reads it.
    options: of the caller.

  Returns:
    The encoder, and the folders of its files: "text_encoder", "tokenizer".

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if its width is not what the network takes.
  """
  if options.text_encoder is False or (name or options.text_encoder) is None:
    return None, {}
  if isinstance(options.text_encoder, CaptionEncoder):
    _check_width(options.text_encoder.width, cfg, "text_encoder")
    return options.text_encoder, {}
  name = options.text_encoder or name
  folder = component_folder(name, "text_encoder", options)
  weights = open_language(folder, cfg.hidden, options.dtype or "bfloat16")
  _check_width(weights.cfg.width, cfg, name)
  if options.text_encoder or tokenizer is None:
    tokenizer = _tokenizer_beside(folder, name)
  tokenizer = options.tokenizer or tokenizer
  tokenizer = component_folder(tokenizer, "tokenizer", options)
  encoder = CaptionEncoder(
    weights.cfg,
    Tokenizer(tokenizer, cfg.max_tokens, cfg.add_eos),
    lambda: weights.load(options.mesh),
    batch_size=BATCH,
    cache=options.cache,
    identity=identity(folder),
    system_prompt=cfg.system_prompt,
    cleaning=cfg.cleaning,
  )
  return encoder, {"text_encoder": folder, "tokenizer": tokenizer}


def refuse_text_encoder(folder: pathlib.Path, options: Options) -> None:
  """Refuses a language model for a network that reads prompts itself.

  Raises:
    ValueError: naming the option.
  """
  for name in ("text_encoder", "tokenizer"):
    if getattr(options, name):
      raise ValueError(
        f"{folder}: this network reads prompts itself; leave {name} out"
      )


def _tokenizer_beside(folder: pathlib.Path, name: Name) -> Name:
  """The tokenizer of a language model whose folder names none."""
  twin = folder.parent / "tokenizer"  # In a pipeline's folder.
  return twin if folder.name == "text_encoder" and twin.is_dir() else name


def component_folder(
  name: Name, component: str, options: Options
) -> pathlib.Path:
  """The folder of a component: named itself, or within a pipeline's folder."""
  folder = hub.find(name, options.token, within=component)
  inside = folder / component
  return inside if inside.is_dir() else folder


def _check_width(width: int, cfg: TextFeaturesConfig, name: Name) -> None:
  if width != cfg.width:
    raise ValueError(
      f"{name}: a language model of width {width}; the network takes features "
      f"of width {cfg.width}. Pass the one that it was trained with, "
      "text_encoder="
    )


def identity(folder: pathlib.Path) -> str:
  """Distinguishes weights, so that a feature cache never mixes them up."""
  files = sorted(folder.glob("*.safetensors"))
  stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  return f"{folder.resolve()} {stats}"


@contextlib.contextmanager
def staged(
  components: Components, folder: pathlib.Path, dtype: str, overwrite: bool
) -> Iterator[pathlib.Path]:
  """Yields a new folder with encoders and licences, which replaces `folder`.

  Args:
    components: of the pipeline to write.
    folder: of the pipeline.
    dtype: of the network, whose weights the caller adds.
    overwrite: whether to replace a pipeline.

  Raises:
    FileExistsError: if something is there and may not be replaced.
    OSError: if the disk is full.
  """
  codec, files = components.codec, components.files
  names = FILES.keys() & files.keys()
  weights = jax.tree.leaves(components.params)
  nbytes = sum(x.size for x in weights) * dtype_of(dtype).itemsize
  nbytes += sum(4 * x.size for x in jax.tree.leaves(codec and codec.params))
  for name in names:
    nbytes += sum(f.stat().st_size for f in _files(files[name], name))
  with destination.staged(
    folder, nbytes, overwrite, destination.PIPELINE_FILES
  ) as new:
    new.mkdir()
    if codec:
      codecs.save(codec, new / "vae")
      licences.copy(files.get("vae"), new / "vae")
    for name in names:
      _copy(files[name], new / name, name)
    licences.copy(files.get("licence"), new)
    yield new


def _copy(source: pathlib.Path, destination: pathlib.Path, name: str) -> None:
  """Copies the files of a component, and the licence that comes with them.

  Args:
    source: folder that it was loaded from.
    destination: folder to make.
    name: a key of FILES.

  Raises:
    FileNotFoundError: if the files are gone.
  """
  files = _files(source, name)
  if not files:
    raise FileNotFoundError(
      f"the files of the {name} are no longer in {source}"
    )
  destination.mkdir()
  for path in files:
    shutil.copyfile(path, destination / path.name)
  licences.copy(source, destination)


def _files(source: pathlib.Path, name: str) -> list[pathlib.Path]:
  return sorted(
    entry
    for entry in (source.iterdir() if source.is_dir() else ())
    if any(fnmatch.fnmatch(entry.name, pattern) for pattern in FILES[name])
  )
