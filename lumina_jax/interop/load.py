"""Opens and loads weights of any format, ours or PyTorch's."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import native
from lumina_jax.interop.pytorch import open_pytorch
from lumina_jax.interop.weights import Weights, read_all


def load_weights(
  source: str | os.PathLike,
  ema: bool | None = None,
  model_args: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads the backbone from weights of any format.

  Arguments and errors are those of `open_weights`.

  Returns:
    The network, and its parameters, float32 on the host.
  """
  weights = open_weights(source, ema, model_args)
  return weights.cfg, read_all(weights, np.dtype(np.float32))


def open_weights(
  source: str | os.PathLike,
  ema: bool | None = None,
  model_args: Mapping[str, Any] | None = None,
) -> Weights:
  """Opens weights without reading them; errors are those of `load_pytorch`.

  Args:
    source: a workdir, a folder that `save_pretrained` or `convert` wrote, or
      any path that `load_pytorch` takes.
    ema: True for EMA weights, False for raw ones; None prefers EMA.
    model_args: arguments that PyTorch's files do not hold; see `load_pytorch`.
  """
  if "://" in str(source):
    raise ValueError(
      f"{source}: buckets are not supported; copy it to a local disk"
    )
  source = pathlib.Path(source).expanduser()
  if not native.is_native(source):
    return open_pytorch(source, model_args, ema)
  if model_args:
    raise ValueError(
      f"{source} is in our own format, which describes its network; leave "
      "model_args out"
    )
  return native.open_native(source, ema)
