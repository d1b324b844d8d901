"""The weights of one network, wherever they are, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.interop.comparison import check

Path = tuple[str, ...]


class Weights(Protocol):
  """What can be converted.

  Attributes:
    cfg: the network.
    args: what its files say beside the weights, as model_args.
    ema: whether they are averaged; None = the files do not say.
  """

  cfg: ModelConfig
  args: Mapping[str, Any]
  ema: bool | None

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """One of our parameters by its path, in `dtype` or as it is stored."""


class InMemory:
  """Parameters that are at hand."""

  def __init__(
    self,
    cfg: ModelConfig,
    params: Any,
    args: Mapping[str, Any] | None = None,
  ):
    """Checks parameters.

    Raises:
      ValueError: listing every one that is missing, unexpected or misshaped.
    """
    self.cfg, self.args, self.ema = cfg, dict(args or {}), None
    self._flat = traverse_util.flatten_dict(params)
    if ("backbone", "patch_embed", "kernel") in self._flat:
      raise ValueError(
        "these are the parameters of a whole pipeline; pass params['backbone']"
      )
    names = {"/".join(path): x.shape for path, x in self._flat.items()}
    check(_named(cfg), names)

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    array = np.asarray(jax.device_get(self._flat[path]))
    return array if dtype is None else array.astype(dtype, copy=False)


def read_as(weights: Weights, path: Path, dtype: np.dtype) -> np.ndarray:
  """One parameter in a type of numbers.

  Raises:
    ValueError: if numbers of it are too large for the type.
  """
  with np.errstate(over="ignore"):
    array = weights.read(path, dtype)
  if dtype == np.float16 and not np.isfinite(array).all():
    raise ValueError(
      f"{'/'.join(path)} holds numbers that float16 cannot; use bfloat16"
    )
  return array


def _named(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  flat = traverse_util.flatten_dict(shapes(cfg), sep="/")
  return {name: x.shape for name, x in flat.items()}


def paths(cfg: ModelConfig) -> list[Path]:
  """Paths of all parameters."""
  return list(traverse_util.flatten_dict(shapes(cfg)))


def gather(weights: Weights, dtype: np.dtype | None = None) -> dict[str, Any]:
  """All parameters as a nested dict of arrays."""
  flat = {path: weights.read(path, dtype) for path in paths(weights.cfg)}
  return traverse_util.unflatten_dict(flat)
