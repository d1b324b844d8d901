"""Weights from PyTorch and back.

cfg, params = load_pytorch("Lumina-Next-SFT")
save_pytorch(params, cfg, "for_diffusers", layout="diffusers")
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import infer, source
from lumina_jax.interop.comparison import Shapes, check
from lumina_jax.interop.constructors import check_names
from lumina_jax.interop.diffusers import (
  config_json,
  diffusers_config,
  diffusers_names,
)
from lumina_jax.interop.layout import Layout
from lumina_jax.interop.lumina import lumina_names
from lumina_jax.interop.source import Merged
from lumina_jax.interop.target import write
from lumina_jax.interop.weights import InMemory, gather


@dataclasses.dataclass(frozen=True)
class PyTorchWeights:
  """Weights on a disk, checked and ready to be read a parameter at a time.

  Attributes:
    layout: of the network in their names.
    ema: whether they are averaged; None = the files do not say.
    args: what the folder says beside the weights.
  """

  layout: Layout
  ema: bool | None
  args: dict[str, Any]
  _merged: Merged

  @property
  def cfg(self) -> ModelConfig:
    return self.layout.cfg

  def read(
    self, path: tuple[str, ...], dtype: np.dtype | None = None
  ) -> np.ndarray:
    """One of our parameters, by its path."""
    return self.layout.read(path, self._merged.read, dtype)


def open_pytorch(
  path: str | os.PathLike,
  model_args: Mapping[str, Any] | None = None,
  ema: bool | None = None,
) -> PyTorchWeights:
  """Finds weights, recognises their network and checks every shape.

  Arguments and errors are those of `load_pytorch`.
  """
  found = source.find(pathlib.Path(path), ema)
  merged, told = Merged(found.shards), dict(model_args or {})
  shapes, args = merged.shapes(), found.args | told
  try:
    if found.layout == "diffusers":
      cfg, sigma = diffusers_config(args, _separate(merged, shapes))
      check_names(told, config_json(cfg))  # It has names of its own.
      table = diffusers_names(cfg)
    else:
      check_names(told)
      cfg, sigma = infer.lumina_config(shapes, args)
      table = lumina_names(cfg)
    layout = Layout(cfg, table, sigma)
    check(layout.shapes(), shapes)
  # Also what values of a wrong type or size lead to.
  except (ArithmeticError, TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error
  # A diffusers config.json speaks of nothing but the network.
  beside = args if found.layout == "lumina" else {}
  return PyTorchWeights(layout, found.ema, beside, merged)


def load_pytorch(
  path: str | os.PathLike,
  model_args: Mapping[str, Any] | None = None,
  ema: bool | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads a Flag-DiT or Next-DiT that PyTorch saved.

  Takes a folder of the original code (tensor-parallel shards are merged,
  `model_args.pth` is read without running anything), one .safetensors or .pth
  file, or a diffusers folder or its `transformer/`.

  Args:
    path: of the folder or file.
    model_args: what the weights do not tell, in the words of the original
      constructors, e.g. {"n_heads": 32} or {"model": "NextDiT_2B_patch2"};
      stands above what the folder says. For audio, {"time_scale": 1000} if
      the network is to be fed whole steps, as the published one is.
    ema: averaged weights or raw ones; None = averaged if there are both.

  Returns:
    The network, which computes in float32 (`dataclasses.replace(cfg,
    dtype="bfloat16")` for speed), and its parameters, float32 arrays on the
    host: `jax.device_put` them once before using them often.

  Raises:
    FileNotFoundError: if there are no weights; says what was looked for.
    ValueError: if a file is broken or holds more than tensors, if the network
      cannot be told, or listing every missing, unexpected and misshaped
      tensor.
  """
  weights = open_pytorch(path, model_args, ema)
  cfg = dataclasses.replace(weights.cfg, dtype="float32")
  return cfg, gather(weights, np.dtype(np.float32))


def _separate(merged: Merged, shapes: Shapes) -> bool:
  """Whether diffusers' two copies of the queries have grown apart."""
  for key in shapes:
    if re.search(r"attn2\.(to_q|norm_q)\.", key):
      twin = key.replace("attn2", "attn1")
      if twin in shapes and not np.array_equal(
        merged.read(key), merged.read(twin)
      ):
        return True
  return False


def save_pytorch(
  params: Any,
  cfg: ModelConfig,
  path: str | os.PathLike,
  layout: str = "lumina",
  *,
  dtype: str = "float32",
  model_args: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> None:
  """Saves a network for PyTorch.

  Args:
    params: of the backbone.
    cfg: the network.
    path: of the folder to make. For the original layout also a file, which
      ends in .safetensors or .pth.
    layout: "lumina", the folder that the original code loads, one file
      whatever its size (there, a second file is a second tensor-parallel
      rank); or "diffusers", a folder that LuminaNextDiT2DModel.from_pretrained
      loads, in files of at most 5 GB.
    dtype: "float32", "bfloat16" or "float16".
    model_args: what model_args.pth shall say beside the network, e.g. "lm".
    overwrite: whether something may be there already.

  Raises:
    ValueError: for an unknown layout, parameters that are not the network's,
      or a network that the layout has no place for.
    FileExistsError: if the path exists and `overwrite` is not set.
    OSError: if the disk has no room. Nothing is left half written.
  """
  write(
    InMemory(cfg, params, model_args), path, layout, dtype, overwrite=overwrite
  )
