"""Our own export: a folder with weights (safetensors) and a config.json.

It holds what sampling needs and nothing of training; vae/, text_encoder/ and
tokenizer/ lie beside them, as in a diffusers folder, if the pipeline has them.
"""

import dataclasses
import logging
import pathlib

import jax
import numpy as np

from lumina_jax import media
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import schema
from lumina_jax.files.json_file import read_json, write_json
from lumina_jax.flow.objective import Objective
from lumina_jax.interop import safetensors
from lumina_jax.interop.pytorch_files import refuse_ema
from lumina_jax.interop.shapes import differences
from lumina_jax.interop.tensor import DTYPES, Tensor, dtype_of
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Offloadable
from lumina_jax.pretrained import encoders
from lumina_jax.pretrained.backbone import flat, offloadable
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SHIPPED = pathlib.Path(__file__).parent.parent / "assets" / "digits"


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """`config.json` of an export; the sections are those of a run's config."""

  medium: str
  model: ModelConfig
  text_encoder: Utf8Config | TextFeaturesConfig | None
  objective: Objective
  sampling: SamplingOptions
  sizes: SizeConfig


def matches(folder: pathlib.Path) -> bool:
  """Whether a folder is, or was to be, an export of ours."""
  if (folder / WEIGHTS).exists():
    return True
  # Other programs write a config.json too; theirs names a class.
  config = folder / CONFIG
  return config.exists() and "_class_name" not in read_json(config)


def is_ours(folder: pathlib.Path) -> bool:
  """Whether a folder is an export of ours, and nobody else's weights."""
  config, sections = folder / CONFIG, {"model", "sampling"}
  return config.exists() and sections <= read_json(config).keys()


def save(
  components: Components, folder: pathlib.Path, dtype: str, overwrite: bool
) -> None:
  """Writes a pipeline atomically.

  Raises:
    FileExistsError: if something is there and may not be replaced.
    OSError: if the disk is full.
  """
  kind, params = dtype_of(dtype), flat(components.params)
  network = components.network
  if components.text_encoder and "text_encoder" not in components.files:
    logging.warning(
      "%s gets no text_encoder/: this pipeline's was passed as an object. Load "
      "it with text_encoder= and the export",
      folder,
    )
  config = ExportConfig(
    components.medium.name,
    network.model,
    network.text_encoder,
    network.objective,
    components.options,
    components.sizes,
  )
  shapes = {name: x.shape for name, x in params.items()}
  with encoders.staged(components, folder, dtype, overwrite) as new:
    header = {"format": "lumina_jax"}
    with safetensors.Writer(new / WEIGHTS, shapes, kind, header) as file:
      for name, x in params.items():
        file.add(name, np.asarray(jax.device_get(x)).astype(kind))
    write_json(new / CONFIG, schema.to_dict(config))


def load(folder: pathlib.Path, options: Options) -> Components:
  """Reads a pipeline.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if a file is cut short, the weights are of another network, or
      an option does not fit.
  """
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).exists():
      raise FileNotFoundError(
        f"{folder} has no {name}; a folder written by save_pretrained has "
        f"{CONFIG} and {WEIGHTS}"
      )
  refuse_ema(folder, options.ema)
  values = read_json(folder / CONFIG)
  config = schema.parse(ExportConfig, values, str(folder / CONFIG))
  medium, text = media.find(config.medium), config.text_encoder
  # As it was saved, unless the caller chooses otherwise.
  options = dataclasses.replace(
    options, dtype=options.dtype or config.model.dtype
  )
  model = dataclasses.replace(config.model, dtype=options.dtype)
  network, encoder, files = Network(model, text, config.objective), None, {}
  if network.frozen_text:
    # A network exported without its language model may be given one.
    name = _existing(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    encoder, files = encoders.text_encoder(name, tokenizer, text, options)
  else:
    encoders.refuse_text_encoder(folder, options)
  name = _existing(folder / "vae")
  codec, codec_files = encoders.codec(name, medium, model, options)
  return Components(
    medium,
    network,
    _weights(folder / WEIGHTS, network, options),
    config.sampling,
    config.sizes,
    text_encoder=encoder,
    codec=codec,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    files=files | codec_files | {"licence": folder},
  )


def _existing(folder: pathlib.Path) -> pathlib.Path | None:
  return folder if folder.exists() else None


def _weights(
  path: pathlib.Path, network: Network, options: Options
) -> Offloadable:
  try:
    tensors = safetensors.read(path)
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  _check(tensors, network, path)

  def read(path, dtype):
    return tensors[".".join(path)].read().astype(dtype)

  return offloadable(read, network, options)


def _check(
  tensors: dict[str, Tensor], network: Network, path: pathlib.Path
) -> None:
  expected = {name: x.shape for name, x in flat(network.shapes()).items()}
  found = {name: x.shape for name, x in tensors.items()}
  if wrong := differences(expected, found):
    lines = "\n  ".join(wrong)
    raise ValueError(f"{path} is of another network:\n  {lines}")
  for name, tensor in tensors.items():
    if tensor.dtype not in DTYPES.values():
      raise ValueError(
        f"{path}: {name} has dtype {tensor.dtype}; use {', '.join(DTYPES)}"
      )
