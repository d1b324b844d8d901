"""Our own formats: folders of weights alone, exports and workdirs.

`convert` writes `<folder>/network.json`, which describes the network, and
`<folder>/params`, an orbax checkpoint. `save_pretrained` writes an export:
`config.json` and `model.safetensors`. A run writes `config.json` and
`checkpoints/`. All of them are read and written one parameter at a time.
"""

import math
import pathlib

import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.files import schema
from lumina_jax.files.json_file import read_json, write_json
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.interop import destination, orbax, safetensors
from lumina_jax.interop.orbax import OrbaxArrays
from lumina_jax.interop.pytorch_writer import OnProgress
from lumina_jax.interop.shapes import Shapes, check_shapes
from lumina_jax.interop.weights import Path, Weights, backbone_shapes, read_as

CONFIG = "config.json"  # Of exports and workdirs.
NETWORK = "network.json"
PARAMS = "params"
EXPORTED = "model.safetensors"
CHECKPOINTS = "checkpoints"


def open_checkpoint(
  cfg: ModelConfig,
  medium: str,
  folder: pathlib.Path,
  subtree: Path = (),
  ema: bool | None = None,
) -> Weights:
  """Opens a backbone in an orbax checkpoint and checks every shape.

  Args:
    cfg: the network.
    medium: the medium that it generates.
    folder: the orbax checkpoint.
    subtree: keys that lead to the parameters of the backbone.
    ema: whether they are EMA weights; None if unknown.

  Raises:
    ValueError: if it cannot be read, or is of another network.
  """
  arrays = OrbaxArrays(folder, subtree)
  found = {"/".join(path): shape for path, shape in arrays.shapes.items()}
  _check(cfg, found, folder)
  return Weights(cfg, medium, arrays.read, ema)


def _open_export(folder: pathlib.Path) -> Weights:
  cfg, medium = _network(folder / CONFIG)
  tensors = safetensors.read(folder / EXPORTED)
  prefix = "backbone."
  found = {
    key.removeprefix(prefix).replace(".", "/"): tensor.shape
    for key, tensor in tensors.items()
    if key.startswith(prefix)
  }
  _check(cfg, found, folder / EXPORTED)

  def read(path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    array = tensors[".".join(("backbone", *path))].read()
    return array if dtype is None else array.astype(dtype, copy=False)

  return Weights(cfg, medium, read)


def _check(cfg: ModelConfig, found: Shapes, path: pathlib.Path) -> None:
  try:
    check_shapes(backbone_shapes(cfg), found)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _network(path: pathlib.Path) -> tuple[ModelConfig, str]:
  """The network, and its medium, in a JSON file of ours."""
  values = read_json(path)
  if missing := {"model", "medium"} - values.keys():
    raise ValueError(
      f"{path} describes no network of ours: it lacks "
      f"{', '.join(sorted(missing))}"
    )
  cfg = schema.parse(ModelConfig, values["model"], f"{path}: model")
  return cfg, schema.typed(str, values["medium"], f"{path}: medium")


def is_native(folder: pathlib.Path) -> bool:
  """Whether `open_native` can read a folder."""
  return (folder / NETWORK).exists() or (
    (folder / CONFIG).exists()
    and any((folder / name).exists() for name in (EXPORTED, CHECKPOINTS))
  )


def open_native(folder: pathlib.Path, ema: bool | None = None) -> Weights:
  """Opens a folder of weights, or the newest checkpoint of a run.

  Args:
    folder: a folder that `write_native` or `save_pretrained` wrote, or a
      workdir.
    ema: True for EMA weights, False for raw ones; None prefers EMA.

  Raises:
    FileNotFoundError: if the folder is neither, or lacks the weights that
      `ema` selects.
    ValueError: if a file cannot be read.
  """
  alone = any((folder / name).exists() for name in (NETWORK, EXPORTED))
  if alone and ema is not None:
    raise FileNotFoundError(
      f"{folder} holds one set of weights and does not say whether they are "
      "EMA weights; leave --ema and --noema out"
    )
  if (folder / EXPORTED).exists():
    return _open_export(folder)
  if (folder / NETWORK).exists():
    return open_checkpoint(*_network(folder / NETWORK), folder / PARAMS)
  cfg, medium = _network(folder / CONFIG)
  step = folder / CHECKPOINTS / str(latest_step(folder))
  if ema is False:
    subtree = ("params", "backbone")
    return open_checkpoint(cfg, medium, step / "train", subtree, False)
  return open_checkpoint(cfg, medium, step / "ema", ("backbone",), True)


def latest_step(folder: pathlib.Path) -> int:
  """The step of the newest checkpoint in a workdir.

  Raises:
    FileNotFoundError: if there is none.
  """
  names = [entry.name for entry in (folder / CHECKPOINTS).glob("*")]
  steps = [int(name) for name in names if name.isdigit()]
  if not steps:
    raise FileNotFoundError(f"{folder} has no checkpoint yet; train on")
  return max(steps)


def read_objective(folder: pathlib.Path) -> Objective:
  """The objective that the network in a folder of ours was trained with.

  Converted weights predict the velocity of the linear path: `convert` refuses
  all others.
  """
  if (folder / NETWORK).exists():
    return PLAIN
  values = read_json(folder / CONFIG)
  at = f"{folder / CONFIG}: objective"
  return schema.parse(Objective, values.get("objective"), at)


def write_native(
  weights: Weights,
  folder: pathlib.Path,
  dtype: np.dtype,
  overwrite: bool = False,
  on_progress: OnProgress = lambda done: None,
) -> None:
  """Writes a folder of weights alone.

  Raises:
    FileExistsError: if the folder exists and `overwrite` is not set.
    OSError: if the disk has no room. Nothing is left half written.
  """
  tree = traverse_util.flatten_dict(shapes(weights.cfg))
  sizes = {path: x.shape for path, x in tree.items()}
  done = 0

  def read(path):
    nonlocal done
    on_progress(done := done + 1)
    return read_as(weights, path, dtype)

  nbytes = sum(map(math.prod, sizes.values())) * dtype.itemsize
  with destination.staged(folder, nbytes, overwrite) as new:
    new.mkdir()
    orbax.write(new / PARAMS, sizes, dtype, read)
    network = {"medium": weights.medium, "model": weights.cfg}
    write_json(new / NETWORK, schema.to_dict(network))
