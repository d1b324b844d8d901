"""Our own export: a folder with weights (safetensors) and a config.json.

It holds what sampling needs and nothing of training, in bfloat16.
"""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError, deserialize
from safetensors import flax as safetensors

from lumina_jax import config as configs
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampler import SamplingConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SECTIONS = {
  "model": ModelConfig,
  "text_encoder": Utf8Config | None,
  "sampling": SamplingConfig,
}
DTYPES = {"BF16": jnp.bfloat16, "F32": np.float32}
SHIPPED = pathlib.Path(__file__).parent / "assets" / "digits"


def save(pipe: LuminaPipeline, folder: epath.PathLike) -> None:
  """Writes a pipeline; each file whole or not at all, the config last."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(pipe.params, sep=".")
  flat = {name: jnp.asarray(x, jnp.bfloat16) for name, x in flat.items()}
  sections = (pipe.network.model, pipe.network.text_encoder, pipe.sampling)
  values = {
    name: configs.to_dict(section)
    for name, section in zip(SECTIONS, sections, strict=True)
  }
  _write(folder / WEIGHTS, safetensors.save(flat, {"format": "lumina_jax"}))
  _write(folder / CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def load(folder: epath.PathLike | None = None) -> LuminaPipeline:
  """Reads a pipeline; without a folder, the digits that ship with the package.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if a file is cut short or the weights are of another network.
  """
  folder = epath.Path(folder or SHIPPED)
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).exists():
      raise FileNotFoundError(
        f"{folder} has no {name}; a folder written by save_pretrained has "
        f"{CONFIG} and {WEIGHTS}"
      )
  values = json.loads((folder / CONFIG).read_text())
  if missing := SECTIONS.keys() - values.keys():
    raise ValueError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}")
  parsed = {
    name: configs.parse(values[name], cls, f"{CONFIG}: {name}")
    for name, cls in SECTIONS.items()
  }
  network = Network(parsed["model"], parsed["text_encoder"])
  try:
    flat = {
      name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
      .reshape(entry["shape"])
      .astype(np.float32)
      for name, entry in deserialize((folder / WEIGHTS).read_bytes())
    }
  except SafetensorError as error:
    raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error
  except KeyError as error:
    raise ValueError(
      f"{folder / WEIGHTS} holds numbers of type {error}; there may be "
      f"{' and '.join(DTYPES)}"
    ) from error
  _check(flat, network, folder / WEIGHTS)
  params = jax.device_put(traverse_util.unflatten_dict(flat, sep="."))
  return LuminaPipeline(network, params, parsed["sampling"])


def _check(flat: dict[str, np.ndarray], network: Network, path) -> None:
  expected = {
    name: x.shape
    for name, x in traverse_util.flatten_dict(network.shapes(), sep=".").items()
  }
  found = {name: x.shape for name, x in flat.items()}
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


def _write(path: epath.Path, data: bytes) -> None:
  new = path.with_name(f"{path.name}.tmp")
  new.write_bytes(data)
  new.replace(path)
