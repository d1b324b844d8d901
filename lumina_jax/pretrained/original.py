"""Weights alone: folders of the original code, and the encoders they name.

A diffusers network without its pipeline also loads here, and so does a folder
that `lumina convert` made.
"""

import pathlib
from typing import Any

from lumina_jax.interop.hugging_face import DIFFUSERS
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.native import NETWORK
from lumina_jax.interop.pytorch_files import SHARD
from lumina_jax.media import IMAGE
from lumina_jax.model.network import Network
from lumina_jax.pretrained import backbone, defaults, encoders
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.components import Components

# Hub names of the autoencoders that the original's --vae names.
VAES = {
  "ema": "stabilityai/sd-vae-ft-ema",
  "mse": "stabilityai/sd-vae-ft-mse",
  "sdxl": "stabilityai/sdxl-vae",
  "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
}


def matches(folder: pathlib.Path) -> bool:
  """Whether a folder, or a file, holds the weights of a network."""
  if folder.is_file() or (folder / NETWORK).exists():
    return True
  if any(folder.glob(f"{DIFFUSERS}*")):
    return True
  return any(SHARD.fullmatch(entry.name) for entry in folder.iterdir())


def load(folder: pathlib.Path, options: Options) -> Components:
  """Loads weights from the folder, and the encoders that it names.

  Raises:
    FileNotFoundError: if the weights or an encoder are missing.
    ValueError: if components do not fit, or the medium has no pipeline yet.
  """
  weights = open_weights(folder, options.ema)
  model = backbone.model(weights, options)
  if weights.medium != IMAGE.name:
    raise ValueError(
      f"{folder} is a network for {weights.medium}; published pipelines of "
      "images load so far. lumina_jax.load_pytorch loads the network alone"
    )
  text = defaults.text_config(model)
  network = Network(model, text)
  encoder, files = None, {}
  if text:
    tokenizer = weights.args.get("tokenizer_path")
    name = weights.args.get("lm") or tokenizer
    name = _required(name, "text_encoder", folder, options)
    encoder, files = encoders.text_encoder(name, tokenizer, text, options)
  else:
    encoders.refuse_text_encoder(folder, options)
  side = defaults.TRAINED if text else 256
  pixels = int(weights.args.get("image_size") or side)
  name = _required(weights.args.get("vae"), "vae", folder, options)
  name = VAES.get(name, name)
  codec, codec_files = encoders.codec(name, IMAGE, model, options)
  factor = codec.factors[0] if codec else 8
  return Components(
    IMAGE,
    network,
    backbone.from_weights(weights, network, options),
    defaults.options(model),
    defaults.sizes(model, pixels // factor),
    text_encoder=encoder,
    codec=codec,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    files=files | codec_files | {"licence": folder},
  )


def _required(name: Any, component: str, folder, options: Options) -> Any:
  """The component that the folder names, unless the options decide.

  Raises:
    FileNotFoundError: if neither names one.
  """
  if name is None and getattr(options, component) is None:
    raise FileNotFoundError(
      f"{folder} does not name the {component} that it was trained with; pass "
      f"its folder or hub name, {component}= (lumina infer --{component}=), or "
      f"in Python {component}=False to load without"
    )
  return name
