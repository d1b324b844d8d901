"""Weights alone: folders of the original code, and the encoders they name.

A network of diffusers without its pipeline is one of these as well, and so is a
folder that `lumina convert` made.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from lumina_jax.interop.hugging_face import DIFFUSERS
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.native import NETWORK
from lumina_jax.interop.pytorch_files import SHARD
from lumina_jax.model.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import backbone, defaults, encoders
from lumina_jax.pretrained.options import Options

# The original's --vae by name, on the hub.
VAES = {
  "ema": "stabilityai/sd-vae-ft-ema",
  "mse": "stabilityai/sd-vae-ft-mse",
  "sdxl": "stabilityai/sdxl-vae",
  "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
}


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder, or a file, holds the weights of a network."""
  if folder.is_file() or (folder / NETWORK).exists():
    return True
  if any(folder.glob(f"{DIFFUSERS}*")):
    return True
  return any(SHARD.fullmatch(entry.name) for entry in folder.iterdir())


def load(folder: pathlib.Path, options: Options) -> LuminaPipeline:
  """Loads a pipeline: weights from here, encoders by the names that they say.

  Raises:
    FileNotFoundError: if the weights or an encoder are missing.
    ValueError: if parts do not fit.
  """
  weights = open_weights(folder, options.ema)
  model = backbone.model(weights, options)
  if weights.medium != "image":
    raise ValueError(
      f"{folder}: pipelines support the medium 'image', not "
      f"{weights.medium!r}. lumina_jax.load_pytorch loads it"
    )
  text = defaults.text(model)
  network = Network(model, text)
  encoder, files = None, {}
  if text:
    words = weights.args.get("tokenizer_path")
    named = weights.args.get("lm") or words
    named = _needed(named, "text_encoder", folder, options)
    encoder, files = encoders.text_encoder(named, words, text, options)
  elif options.text_encoder:
    raise ValueError(f"{folder}: this network takes classes, no text_encoder")
  pixels = int(weights.args.get("image_size") or _usual_pixels(text))
  named = _vae(weights.args, folder, options)
  vae, vae_files = encoders.vae(named, model, options)
  factor = vae.cfg.factor if vae else 8
  return LuminaPipeline(
    network,
    backbone.part(weights, network, options),
    defaults.sampling(model, pixels // factor),
    text_encoder=encoder,
    vae=vae,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    files=files | vae_files | {"licence": folder},
  )


def _usual_pixels(text: Any) -> int:
  return defaults.TRAINED if text else 256


def _vae(args: Mapping[str, Any], folder, options: Options) -> str | None:
  named = _needed(args.get("vae"), "vae", folder, options)
  return VAES.get(named, named)


def _needed(named: Any, part: str, folder, options: Options) -> Any:
  """What the folder names; the caller may name another, or do without."""
  if named is None and getattr(options, part) is None:
    flag = {"text_encoder": "--ckpt_lm", "vae": "--ckpt_vae"}[part]
    raise FileNotFoundError(
      f"{folder} does not say which {part} it was trained with; name its "
      f"folder or its place on the hub, {part}= (lumina infer {flag}=), or in "
      f"Python {part}=False to do without"
    )
  return named
