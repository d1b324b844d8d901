"""The networks around the backbone: a language model and an autoencoder."""

from __future__ import annotations

import fnmatch
import os
import pathlib
import shutil
from typing import TYPE_CHECKING

import jax

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.captions import CaptionEncoder
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.encoders.tokenizer import Tokenizer
from lumina_jax.interop import licences
from lumina_jax.interop.language import open_language
from lumina_jax.interop.vae import load_vae
from lumina_jax.pretrained import hub
from lumina_jax.pretrained.options import Options

if TYPE_CHECKING:
  from lumina_jax.pipeline import LuminaPipeline

Named = str | os.PathLike
BATCH = 4  # Captions that are encoded at once; a call mostly has two.
# What a language model and its tokenizer consist of on a disk.
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


Files = dict[str, pathlib.Path]  # Where parts come from, by their names.


def vae(
  named: Named | None, model: ModelConfig, options: Options
) -> tuple[Autoencoder | None, Files]:
  """The autoencoder of a pipeline, and its folder, "vae".

  Args:
    named: folder or hub name, unless the options name another.
    model: draws the latents.
    options: of the caller.

  Raises:
    ValueError: if its latents are not those that the network draws.
  """
  at = options.vae or named
  if options.vae is False or at is None:
    return None, {}
  if isinstance(at, Autoencoder):
    found, files, at = at, {}, "vae"
  else:
    folder = _folder(at, "vae", options)
    found, files = load_vae(folder, mesh=options.mesh), {"vae": folder}
  if found.cfg.latent_channels != model.channels:
    raise ValueError(
      f"{at}: its latents have {found.cfg.latent_channels} channels, the "
      f"network draws {model.channels}; name the autoencoder that it was "
      "trained with, vae="
    )
  return found, files


def text_encoder(
  named: Named | None,
  words: Named | None,
  cfg: FrozenTextConfig,
  options: Options,
) -> tuple[CaptionEncoder | None, Files]:
  """The language model of a pipeline, loaded when a caption needs it.

  Args:
    named: folder or hub name, unless the options name another.
    words: likewise of its tokenizer; None = beside the model.
    cfg: how it is read.
    options: of the caller.

  Returns:
    The encoder, and the folders of its files: "text_encoder", "tokenizer".

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if its width is not what the network takes.
  """
  if options.text_encoder is False or (named or options.text_encoder) is None:
    return None, {}
  if isinstance(options.text_encoder, CaptionEncoder):
    _check_width(options.text_encoder.width, cfg, "text_encoder")
    return options.text_encoder, {}
  at = options.text_encoder or named
  folder = _folder(at, "text_encoder", options)
  weights = open_language(folder, cfg.hidden, options.dtype or "bfloat16")
  _check_width(weights.cfg.width, cfg, at)
  if options.text_encoder or words is None:
    words = _beside(folder, at)
  words = _folder(options.tokenizer or words, "tokenizer", options)
  encoder = CaptionEncoder(
    weights.cfg,
    Tokenizer(words, cfg.max_tokens, cfg.add_eos),
    lambda: weights.load(options.mesh),
    batch_size=BATCH,
    cache=options.cache,
    identity=identity(folder),
    system_prompt=cfg.system_prompt,
    clean=cfg.cleaning,
  )
  return encoder, {"text_encoder": folder, "tokenizer": words}


def _beside(folder: pathlib.Path, named: Named) -> Named:
  """Where the tokenizer of a language model lies, if nothing says so."""
  twin = folder.parent / "tokenizer"  # In a pipeline, of one of its parts.
  return twin if folder.name == "text_encoder" and twin.is_dir() else named


def _folder(named: Named, part: str, options: Options) -> pathlib.Path:
  """The folder of a part: named itself, or within the pipeline that is."""
  folder = hub.find(named, options.token, within=part)
  return folder / part if (folder / part).is_dir() else folder


def _check_width(width: int, cfg: FrozenTextConfig, at: Named) -> None:
  if width != cfg.width:
    raise ValueError(
      f"{at}: a language model of width {width}; the network takes features "
      f"of width {cfg.width}. Name the one that it was trained with, "
      "text_encoder="
    )


def identity(folder: pathlib.Path) -> str:
  """Tells weights from others, so that a cache never mixes them up."""
  files = sorted(folder.glob("*.safetensors"))
  stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  return f"{folder.resolve()} {stats}"


def nbytes(pipe: LuminaPipeline) -> int:
  """What the encoders of a pipeline take on a disk, about."""
  leaves = jax.tree.leaves(pipe.vae.params) if pipe.vae else []
  files = [
    entry.stat().st_size
    for part in FILES.keys() & pipe.files.keys()
    for entry in _files(pipe.files[part], part)
  ]
  return sum(4 * x.size for x in leaves) + sum(files)


def copy(source: pathlib.Path, destination: pathlib.Path, part: str) -> None:
  """Copies the files of a part, and the terms that come with them.

  Args:
    source: folder that it was loaded from.
    destination: folder to make.
    part: a key of FILES.

  Raises:
    FileNotFoundError: if they are not there any more.
  """
  files = _files(source, part)
  if not files:
    raise FileNotFoundError(
      f"the files of the {part} are not in {source} any more"
    )
  destination.mkdir()
  for path in files:
    shutil.copyfile(path, destination / path.name)
  licences.copy(source, destination)


def _files(source: pathlib.Path, part: str) -> list[pathlib.Path]:
  return sorted(
    entry
    for entry in (source.iterdir() if source.is_dir() else ())
    if any(fnmatch.fnmatch(entry.name, like) for like in FILES[part])
  )
