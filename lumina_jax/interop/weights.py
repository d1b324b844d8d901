"""Weights of one network, in memory or on disk, one parameter at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.interop.shapes import check_shapes
from lumina_jax.interop.tensor import cast

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that can be read and converted.

  Attributes:
    cfg: config of the network.
    medium: name of the medium that it generates, e.g. "image".
    read: (path, dtype) -> one parameter; without a dtype, as it is stored.
    ema: whether they are EMA weights; None if the files do not say.
    args: other arguments that the files hold, as model_args.
  """

  cfg: ModelConfig
  medium: str
  read: Callable[..., np.ndarray]
  ema: bool | None = None
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def in_memory(
  cfg: ModelConfig,
  params: Any,
  medium: str,
  args: Mapping[str, Any] | None = None,
) -> Weights:
  """Parameters in memory as `Weights`.

  Raises:
    ValueError: listing every missing, unexpected and misshaped parameter.
  """
  flat = traverse_util.flatten_dict(params)
  if ("backbone", "patch_embed", "kernel") in flat:
    raise ValueError(
      "these are the parameters of a whole pipeline; pass params['backbone']"
    )
  found = {"/".join(path): x.shape for path, x in flat.items()}
  check_shapes(backbone_shapes(cfg), found)

  def read(path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    return np.asarray(jax.device_get(flat[path]), dtype)

  return Weights(cfg, medium, read, args=args or {})


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
  paths = traverse_util.flatten_dict(shapes(weights.cfg))
  flat = {path: weights.read(path, dtype) for path in paths}
  return traverse_util.unflatten_dict(flat)


def backbone_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters of a backbone by path, joined by slashes."""
  flat = traverse_util.flatten_dict(shapes(cfg), sep="/")
  return {name: x.shape for name, x in flat.items()}
