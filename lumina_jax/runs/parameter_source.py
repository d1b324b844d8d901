"""Stored parameters that a run can start from, ours or PyTorch's."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import schema
from lumina_jax.files.json_file import read_json
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.interop import native, safetensors
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.orbax import OrbaxArrays
from lumina_jax.interop.weights import Path, Weights
from lumina_jax.parallel import processes
from lumina_jax.training import run_config

FLOAT32 = np.dtype(np.float32)
TEXT = "text_encoder"
TextConfig = Utf8Config | TextFeaturesConfig
Shapes = Mapping[Path, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class ParameterSource:
  """Stored parameters of a network, read one array at a time.

  Attributes:
    model: the backbone.
    text_encoder: the text encoder; None if there is none, or it is unknown.
    objective: the objective they were trained for; that of published weights if
      it is unknown.
    shapes: shapes of all parameters by path.
    read: reads one parameter by its path, as float32.
  """

  model: ModelConfig
  text_encoder: TextConfig | None
  objective: Objective
  shapes: Shapes
  read: Callable[[Path], np.ndarray]


def open_source(source: str | os.PathLike) -> ParameterSource:
  """Opens stored parameters without reading them.

  Args:
    source: a workdir, a folder that `save_pretrained` or `convert` wrote, or
      any other path that `open_weights` takes.

  Raises:
    FileNotFoundError: if it is missing.
    ValueError: if it cannot be read.
  """
  weights = open_weights(source)  # Validates the source.
  folder = pathlib.Path(source).expanduser()
  if not native.is_native(folder):
    return _backbone(weights, PLAIN)
  objective = native.read_objective(folder)
  if (folder / native.EXPORTED).exists():
    return _export(folder, weights.cfg, objective)
  if (folder / native.NETWORK).exists():
    return _backbone(weights, objective)
  return _run(folder, objective)


def shapes_of(tree: Any) -> dict[Path, tuple[int, ...]]:
  """Maps a nested dict of arrays to shapes by path."""
  flat = traverse_util.flatten_dict(tree)
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _backbone(weights: Weights, objective: Objective) -> ParameterSource:
  """A backbone without a text encoder."""
  return ParameterSource(
    weights.cfg,
    None,
    objective,
    shapes_of({"backbone": shapes(weights.cfg)}),
    lambda path: weights.read(path[1:], FLOAT32),
  )


def _export(
  folder: pathlib.Path, model: ModelConfig, objective: Objective
) -> ParameterSource:
  """A folder of `save_pretrained`."""
  values = read_json(folder / run_config.FILE).get(TEXT)
  text_encoder = schema.parse(TextConfig | None, values, f"{folder}: {TEXT}")
  tensors = {
    tuple(name.split(".")): tensor
    for name, tensor in safetensors.read(folder / native.EXPORTED).items()
  }
  return ParameterSource(
    model,
    text_encoder,
    objective,
    {path: tuple(tensor.shape) for path, tensor in tensors.items()},
    lambda path: tensors[path].read().astype(FLOAT32, copy=False),
  )


def _run(folder: pathlib.Path, objective: Objective) -> ParameterSource:
  """A workdir: the EMA parameters of its newest checkpoint."""
  # The same for all processes, even if a run in progress adds another.
  step = processes.broadcast(native.latest_step(folder))
  arrays = OrbaxArrays(folder / native.CHECKPOINTS / str(step) / "ema")
  config = run_config.load(folder)
  return ParameterSource(
    config.model,
    config.network.text_encoder,
    objective,
    arrays.shapes,
    functools.partial(arrays.read, dtype=FLOAT32),
  )
