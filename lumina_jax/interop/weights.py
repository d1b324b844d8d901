"""Weights of one network, in memory or on disk, one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.interop.shapes import check_shapes
from lumina_jax.interop.tensor import cast

Path = tuple[str, ...]


class Weights(Protocol):
  """Weights that can be read and converted.

  Attributes:
    cfg: Config of the network.
    medium: Name of the medium that it generates, e.g. "image".
    args: Other arguments that its files hold, as model_args.
    ema: Whether they are EMA weights; None if the files do not say.
  """

  cfg: ModelConfig
  medium: str
  args: Mapping[str, Any]
  ema: bool | None

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """Reads one parameter by its path; without a dtype, as it is stored."""


class InMemoryWeights:
  """Parameters in memory as `Weights`."""

  def __init__(
    self,
    cfg: ModelConfig,
    params: Any,
    medium: str,
    args: Mapping[str, Any] | None = None,
  ):
    """Checks the shapes of the parameters.

    Raises:
      ValueError: listing every missing, unexpected and misshaped parameter.
    """
    self.cfg, self.medium, self.ema = cfg, medium, None
    self.args: Mapping[str, Any] = dict(args or {})
    self._flat = traverse_util.flatten_dict(params)
    if ("backbone", "patch_embed", "kernel") in self._flat:
      raise ValueError(
        "these are the parameters of a whole pipeline; pass params['backbone']"
      )
    found = {"/".join(path): x.shape for path, x in self._flat.items()}
    check_shapes(backbone_shapes(cfg), found)

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """Returns one parameter by its path."""
    array = np.asarray(jax.device_get(self._flat[path]))
    return array if dtype is None else array.astype(dtype, copy=False)


def read_as(weights: Weights, path: Path, dtype: np.dtype) -> np.ndarray:
  """Reads one parameter in the dtype of a file.

  Raises:
    ValueError: if float16 cannot hold its values.
  """
  with np.errstate(over="ignore"):
    array = weights.read(path, dtype)
  return cast(array, dtype, "/".join(path))


def read_all(weights: Weights, dtype: np.dtype | None = None) -> dict[str, Any]:
  """Reads all parameters as a nested dict of arrays."""
  flat = {path: weights.read(path, dtype) for path in paths(weights.cfg)}
  return traverse_util.unflatten_dict(flat)


def paths(cfg: ModelConfig) -> list[Path]:
  """Paths of all parameters of a backbone."""
  return list(traverse_util.flatten_dict(shapes(cfg)))


def backbone_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters of a backbone by path, joined by slashes."""
  flat = traverse_util.flatten_dict(shapes(cfg), sep="/")
  return {name: x.shape for name, x in flat.items()}
