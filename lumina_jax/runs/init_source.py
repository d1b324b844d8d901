"""Where weights that a run begins with come from, ours or PyTorch's."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import schema
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.interop import native, safetensors
from lumina_jax.interop.json_file import read_json
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.weights import Path, Weights
from lumina_jax.parallel import processes
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import FOLDER

FLOAT32 = np.dtype(np.float32)
TEXT = "text_encoder"
TextConfig = Utf8Config | TextFeaturesConfig


@dataclasses.dataclass(frozen=True)
class Source:
  """Parameters of a network somewhere else.

  Attributes:
    model: its backbone.
    text: its text encoder; None = none, or nothing is said of it.
    objective: what it was trained for; where nothing is said, as published.
    shapes: of all parameters that are there, by path.
    read: one of them, float32.
  """

  model: ModelConfig
  text: TextConfig | None
  objective: Objective
  shapes: Mapping[Path, tuple[int, ...]]
  read: Callable[[Path], np.ndarray]


def open_source(source: str | os.PathLike) -> Source:
  """Opens parameters without reading them.

  Args:
    source: a workdir, a folder that `save_pretrained` or `convert` made, or
      what `open_weights` reads beside.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it cannot be read.
  """
  weights = open_weights(source)  # Refuses what cannot be read.
  folder = pathlib.Path(source).expanduser()
  if not native.is_native(folder):
    return _joined(weights, PLAIN)
  objective = native.read_objective(folder)
  if (folder / native.EXPORTED).exists():
    return _open_export(folder, weights, objective)
  if (folder / native.NETWORK).exists():
    return _joined(weights, objective)
  return _open_run(folder, objective)


def _open_export(
  folder: pathlib.Path, weights: Weights, objective: Objective
) -> Source:
  values = read_json(folder / run_config.FILE).get(TEXT)
  text = schema.parse(TextConfig | None, values, f"{folder}: {TEXT}")
  tensors = {
    tuple(name.split(".")): tensor
    for name, tensor in safetensors.read(folder / native.EXPORTED).items()
    if name.startswith(f"{TEXT}.")
  }

  def read(path: Path) -> np.ndarray:
    return tensors[path].read().astype(FLOAT32, copy=False)

  found = {path: tuple(tensor.shape) for path, tensor in tensors.items()}
  return _joined(weights, objective, text, found, read)


def _open_run(folder: pathlib.Path, objective: Objective) -> Source:
  # One step for all tensors and processes, though the run may add another.
  steps = (folder / FOLDER).glob("*")
  step = max(int(entry.name) for entry in steps if entry.name.isdigit())
  step = processes.first_says(step)
  item = (folder / FOLDER / str(step) / "ema").absolute()
  config = run_config.load(folder)
  weights = native.open_checkpoint(
    config.model, config.medium, item, ("backbone",), ema=True
  )
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(item).tree
  found = shapes_of({TEXT: tree[TEXT]} if TEXT in tree else {})

  def read(path: Path) -> np.ndarray:
    how = ocp.RestoreArgs(restore_type=np.ndarray, dtype=FLOAT32)
    args = ocp.args.PyTreeRestore(
      item=traverse_util.unflatten_dict({path: 0}),
      restore_args=traverse_util.unflatten_dict({path: how}),
      partial_restore=True,
    )
    try:
      tree = handler.restore(item, args=args)
    except Exception as error:  # Orbax raises many kinds for broken files.
      raise ValueError(f"{item} cannot be read: {error}") from error
    return traverse_util.flatten_dict(tree)[path]

  return _joined(weights, objective, config.network.text_encoder, found, read)


def _joined(
  weights: Weights,
  objective: Objective,
  text: TextConfig | None = None,
  text_shapes: Mapping[Path, tuple[int, ...]] | None = None,
  read_text: Callable[[Path], np.ndarray] | None = None,
) -> Source:
  """A backbone and, where there is one, the text encoder beside it."""

  def read(path: Path) -> np.ndarray:
    if path[0] == TEXT:
      return read_text(path)
    return weights.read(path[1:], FLOAT32)

  found = shapes_of({"backbone": shapes(weights.cfg)}) | dict(text_shapes or {})
  return Source(weights.cfg, text, objective, found, read)


def shapes_of(tree: Any) -> dict[Path, tuple[int, ...]]:
  """A nested dict of leaves with a shape -> shapes by path."""
  flat = traverse_util.flatten_dict(tree)
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}
