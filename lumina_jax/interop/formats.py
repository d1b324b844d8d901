"""Weights of any format that we read, ours or PyTorch's."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import ours
from lumina_jax.interop.pytorch import open_pytorch
from lumina_jax.interop.weights import Weights, gather


def load_weights(
  source: str | os.PathLike,
  ema: bool | None = None,
  model_args: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads weights of any format.

  A folder that `convert` made, a run of ours, or what `load_pytorch` takes.

  Arguments and errors are those of `open_weights`.

  Returns:
    The network, and the parameters of its backbone, float32 on the host.
  """
  weights = open_weights(source, ema, model_args)
  return weights.cfg, gather(weights, np.dtype(np.float32))


def open_weights(
  source: str | os.PathLike,
  ema: bool | None = None,
  model_args: Mapping[str, Any] | None = None,
) -> Weights:
  """Opens weights without reading them; errors as in `load_pytorch`.

  Args:
    source: what `load_pytorch` takes, or a workdir of ours, a folder that
      `save_pretrained` or `convert` made.
    ema: averaged weights or raw ones; None = averaged if there are both.
    model_args: what PyTorch's files do not tell of their network.
  """
  if "://" in str(source):
    raise ValueError(f"{source}: buckets are not read here; copy it to a disk")
  source = pathlib.Path(source).expanduser()
  if not ours.is_ours(source):
    return open_pytorch(source, model_args, ema)
  if model_args:
    raise ValueError(
      f"{source} is ours and says all of its network; leave model_args out"
    )
  return ours.open_ours(source, ema)
