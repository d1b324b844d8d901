"""The backbone of a pipeline, from weights of any format to the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import Path, Weights
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel.placement import place
from lumina_jax.pretrained.options import Options


def model(weights: Weights, options: Options) -> ModelConfig:
  """Config of the backbone, computing in the dtype of the options."""
  dtype = options.dtype or "bfloat16"
  return dataclasses.replace(weights.cfg, dtype=dtype)


def from_weights(
  weights: Weights, network: Network, options: Options
) -> Offloadable:
  """Parameters of a network that consists of its backbone alone."""

  def read(path, dtype):
    return weights.read(path[1:], dtype)  # Below "backbone".

  return offloadable(read, network, options)


def offloadable(
  read: Callable[[Path, np.dtype], np.ndarray],
  network: Network,
  options: Options,
) -> Offloadable:
  """Parameters of a network, each read by its path and put on the devices.

  With `one_at_a_time` they load when they are first needed, otherwise now.
  """

  def load() -> Any:
    boxed = jax.eval_shape(network.init, jax.random.key(0))
    dtype = dtype_of(network.model.dtype)
    return place(read, boxed, dtype, options.mesh)

  if options.one_at_a_time:
    return Offloadable(load)
  return Offloadable.pinned(load())


def flat(params: Any) -> dict[str, Any]:
  """Parameters by name, e.g. "backbone.final.kernel"."""
  return traverse_util.flatten_dict(params, sep=".")
