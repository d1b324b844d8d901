"""Loads weights from PyTorch's formats and saves them for PyTorch.

cfg, params = load_pytorch("Lumina-Next-SFT")
save_pytorch(params, cfg, "for_diffusers", layout="diffusers")
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import diffusers
from lumina_jax.interop.detect import detect_network
from lumina_jax.interop.layout import backbone_layout
from lumina_jax.interop.lumina import lumina_names
from lumina_jax.interop.model_args import check_arg_names
from lumina_jax.interop.pytorch_files import find_weights
from lumina_jax.interop.pytorch_writer import write
from lumina_jax.interop.shapes import Shapes, check_shapes
from lumina_jax.interop.shards import MergedShards
from lumina_jax.interop.weights import Path, Weights, in_memory, read_all


def open_pytorch(
  path: str | os.PathLike,
  model_args: Mapping[str, Any] | None = None,
  ema: bool | None = None,
) -> Weights:
  """Finds weights, detects their network and checks every shape.

  Arguments and errors are those of `load_pytorch`.
  """
  files = find_weights(pathlib.Path(path), ema)
  tensors, model_args = MergedShards(files.shards), dict(model_args or {})
  shapes, args = tensors.shapes(), files.args | model_args
  try:
    if files.layout == "diffusers":
      text_query = _has_text_query(tensors, shapes)
      cfg, sigma = diffusers.diffusers_config(args, text_query)
      check_arg_names(model_args, diffusers.config_json(cfg))
      medium = diffusers.MEDIUM
      table = diffusers.diffusers_names(cfg, medium)
      args = {}  # config.json describes the network only.
    else:
      check_arg_names(model_args)
      cfg, medium, sigma = detect_network(shapes, args)
      table = lumina_names(cfg, medium)
    layout = backbone_layout(cfg, table, sigma)
    check_shapes(layout.shapes(), shapes)
  # Arguments of a wrong type or size raise any of these.
  except (ArithmeticError, TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error

  def read(path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    return layout.read(path, tensors.read, dtype)

  return Weights(cfg, medium, read, files.ema, args)


def load_pytorch(
  path: str | os.PathLike,
  model_args: Mapping[str, Any] | None = None,
  ema: bool | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads a Flag-DiT or Next-DiT that PyTorch saved.

  Takes a folder of the original code (tensor-parallel shards are merged,
  `model_args.pth` is read without running code), one .safetensors or .pth
  file, or a diffusers folder or its `transformer/`.

  Args:
    path: the folder or file.
    model_args: arguments of the original's constructors that the weights do not
      show, e.g. {"n_heads": 32} or {"model": "NextDiT_2B_patch2"}. They
      override those in the folder. For audio, {"time_scale": 1000} if the
      network receives steps from 0 to 999, as the published one does.
    ema: True for EMA weights, False for raw ones; None prefers EMA.

  Returns:
    The network, which computes in float32 (`dataclasses.replace(cfg,
    dtype="bfloat16")` for speed), and its parameters, float32 arrays on the
    host: `jax.device_put` them once before repeated use.

  Raises:
    FileNotFoundError: if there are no weights; says what was expected.
    ValueError: if a file is broken or holds more than tensors, if the network
      cannot be determined, or listing every missing, unexpected and misshaped
      tensor.
  """
  weights = open_pytorch(path, model_args, ema)
  cfg = dataclasses.replace(weights.cfg, dtype="float32")
  return cfg, read_all(weights, np.dtype(np.float32))


def _has_text_query(tensors: MergedShards, shapes: Shapes) -> bool:
  """Whether diffusers' two copies of the query projection differ."""
  for key in shapes:
    if re.search(r"attn2\.(to_q|norm_q)\.", key):
      twin = key.replace("attn2", "attn1")
      if twin in shapes and not np.array_equal(
        tensors.read(key), tensors.read(twin)
      ):
        return True
  return False


def save_pytorch(
  params: Any,
  cfg: ModelConfig,
  path: str | os.PathLike,
  layout: str = "lumina",
  *,
  medium: str = "image",
  dtype: str = "float32",
  model_args: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> None:
  """Saves a network for PyTorch.

  Args:
    params: parameters of the backbone.
    cfg: the network.
    path: the folder to write. For the original layout also a file, which ends
      in .safetensors or .pth.
    layout: "lumina", the folder that the original code loads, with one file of
      any size (there, a second file is a second tensor-parallel rank); or
      "diffusers", a folder that LuminaNextDiT2DModel.from_pretrained loads, in
      files of at most 5 GB.
    medium: the medium that the network generates. The original layout has
      "image" and "audio", diffusers "image".
    dtype: "float32", "bfloat16" or "float16".
    model_args: stored in model_args.pth beside the network's, e.g. "lm".
    overwrite: whether to replace existing weights.

  Raises:
    ValueError: for an unknown layout or medium, parameters that do not fit the
      network, or a network that the layout does not support.
    FileExistsError: if the path exists and `overwrite` is not set.
    OSError: if the disk has no room. Nothing is left half written.
  """
  weights = in_memory(cfg, params, medium, model_args)
  write(weights, path, layout, dtype, overwrite=overwrite)
