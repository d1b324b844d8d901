"""The backbone of a pipeline, from weights of any format to the devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import traverse_util

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import Weights
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Part
from lumina_jax.parallel.placement import place
from lumina_jax.pretrained.options import Options


def model(weights: Weights, options: Options) -> ModelConfig:
  """The network, computing in the type of numbers that was asked for."""
  dtype = options.dtype or "bfloat16"
  return dataclasses.replace(weights.cfg, dtype=dtype)


def part(weights: Weights, network: Network, options: Options) -> Part:
  """Parameters of a network that has none but those of its backbone.

  With `one_at_a_time` they are loaded when they are needed, else now.
  """

  def read(path, dtype):
    return weights.read(path[1:], dtype)  # Below "backbone".

  def load() -> Any:
    boxed = jax.eval_shape(network.init, jax.random.key(0))
    dtype = dtype_of(network.model.dtype)
    return place(read, boxed, dtype, options.mesh)

  loaded = Part(load)
  return loaded if options.one_at_a_time else Part.of(loaded.get())


def flat(params: Any) -> dict[str, Any]:
  """Parameters by name, e.g. "backbone.final.kernel"."""
  return traverse_util.flatten_dict(params, sep=".")
