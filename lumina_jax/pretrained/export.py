"""Our own export: a folder with weights (safetensors) and a config.json.

It holds what sampling needs and nothing of training; beside them, where the
pipeline has them, vae/, text_encoder/ and tokenizer/ as in a diffusers folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import schema
from lumina_jax.flow.objective import Objective
from lumina_jax.interop import destination, licences, safetensors
from lumina_jax.interop.json_file import read_json
from lumina_jax.interop.tensor import DTYPES, Tensor, dtype_of
from lumina_jax.interop.vae import save_vae
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Part
from lumina_jax.parallel.placement import place
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import encoders
from lumina_jax.pretrained.backbone import flat
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.program import SamplingConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SECTIONS = {
  "model": ModelConfig,
  "text_encoder": Utf8Config | FrozenTextConfig | None,
  "sampling": SamplingConfig,
}
OBJECTIVE = "objective"  # A section that older exports lack.
SHIPPED = pathlib.Path(__file__).parent.parent / "assets" / "digits"


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder is, or was to be, an export of ours."""
  if (folder / WEIGHTS).exists():
    return True
  # Each program has a config.json; ours has no class.
  config = folder / CONFIG
  return config.exists() and "_class_name" not in read_json(config)


def is_ours(folder: pathlib.Path) -> bool:
  """Whether a folder is an export of ours, and nobody else's weights."""
  config = folder / CONFIG
  return config.exists() and SECTIONS.keys() <= read_json(config).keys()


def save(
  pipe: LuminaPipeline, folder: pathlib.Path, dtype: str, overwrite: bool
) -> None:
  """Writes a pipeline, whole or not at all.

  Raises:
    FileExistsError: if something is there and may not be overwritten.
    OSError: if the disk has no room.
  """
  kind, params = dtype_of(dtype), flat(pipe.params)
  if pipe.text_encoder and "text_encoder" not in pipe.files:
    logging.warning(
      "%s gets no text_encoder/: this pipeline's came as an object, not from "
      "files. Load it with text_encoder=",
      folder,
    )
  shapes = {name: x.shape for name, x in params.items()}
  sections = (pipe.network.model, pipe.network.text_encoder, pipe.sampling)
  values = {
    name: schema.to_dict(section)
    for name, section in zip(SECTIONS, sections, strict=True)
  } | {OBJECTIVE: schema.to_dict(pipe.network.objective), "medium": "image"}
  nbytes = sum(x.size for x in params.values()) * kind.itemsize
  nbytes += encoders.nbytes(pipe)
  with destination.staged(
    folder, nbytes, overwrite, destination.PIPELINE_FILES
  ) as new:
    new.mkdir()
    said = {"format": "lumina_jax"}
    with safetensors.Writer(new / WEIGHTS, shapes, kind, said) as file:
      for name, x in params.items():
        file.add(name, np.asarray(jax.device_get(x)).astype(kind))
    (new / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    if pipe.vae:
      save_vae(pipe.vae, new / "vae")
      licences.copy(pipe.files.get("vae"), new / "vae")
    for part in encoders.FILES.keys() & pipe.files.keys():
      encoders.copy(pipe.files[part], new / part, part)
    licences.copy(pipe.files.get("licence"), new)


def load(folder: pathlib.Path, options: Options) -> LuminaPipeline:
  """Reads a pipeline.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if a file is cut short or the weights are of another network.
  """
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).exists():
      raise FileNotFoundError(
        f"{folder} has no {name}; a folder written by save_pretrained has "
        f"{CONFIG} and {WEIGHTS}"
      )
  values = read_json(folder / CONFIG)
  if missing := SECTIONS.keys() - values.keys():
    raise ValueError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}")
  model, text, sampling = (
    schema.parse(cls, values[name], f"{CONFIG}: {name}")
    for name, cls in SECTIONS.items()
  )
  objective = schema.parse(
    Objective, values.get(OBJECTIVE, {}), f"{CONFIG}: {OBJECTIVE}"
  )
  # As it was saved, unless the caller wants it otherwise.
  options = dataclasses.replace(options, dtype=options.dtype or model.dtype)
  model = dataclasses.replace(model, dtype=options.dtype)
  network, encoder, files = Network(model, text, objective), None, {}
  if network.frozen_text:
    # A network that was exported without its language model may be given one.
    own = folder / "text_encoder"
    named = own if own.exists() else None
    words = folder / "tokenizer"
    encoder, files = encoders.text_encoder(named, words, text, options)
  own = folder / "vae"
  named = own if own.exists() else None
  vae, vae_files = encoders.vae(named, model, options)
  return LuminaPipeline(
    network,
    _part(folder / WEIGHTS, network, options),
    sampling,
    text_encoder=encoder,
    vae=vae,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    files=files | vae_files | {"licence": folder},
  )


def _part(path: pathlib.Path, network: Network, options: Options) -> Part:
  try:
    tensors = safetensors.read(path)
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  _check(tensors, network, path)

  def read(path, dtype):
    return tensors[".".join(path)].read().astype(dtype)

  def load():
    boxed = jax.eval_shape(network.init, jax.random.key(0))
    return place(read, boxed, dtype_of(network.model.dtype), options.mesh)

  part = Part(load)
  return part if options.one_at_a_time else Part.of(part.get())


def _check(
  tensors: dict[str, Tensor], network: Network, path: pathlib.Path
) -> None:
  shapes = traverse_util.flatten_dict(network.shapes(), sep=".")
  expected = {name: x.shape for name, x in shapes.items()}
  found = {name: x.shape for name, x in tensors.items()}
  wrong = {
    name
    for name in expected.keys() | found.keys()
    if expected.get(name) != found.get(name)
  }
  if wrong:
    lines = "\n  ".join(
      f"{name}: expected {expected.get(name)}, found {found.get(name)}"
      for name in sorted(wrong)
    )
    raise ValueError(f"{path} is of another network:\n  {lines}")
  for name, tensor in tensors.items():
    if tensor.dtype not in DTYPES.values():
      raise ValueError(
        f"{path}: {name} holds numbers of type {tensor.dtype}; there may be "
        f"{', '.join(DTYPES)}"
      )
