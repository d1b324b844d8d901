"""Merges the tensor-parallel shards of the original code, tensor by tensor."""

import logging
import re

import numpy as np

from lumina_jax.interop.tensor import Tensor

# Axis along which fairscale splits a weight; every shard has the others whole.
# A bias is split where the rows of its weight are.
SPLIT_AXES = {
  0: r"(wq|wk|wv|wk_y|wv_y|w1|w3|x_embedder|mlp\.0|cap_embedder\.1|"
  r"adaLN_modulation\.1|final_layer\.linear)\.(weight|bias)|"
  r"(q_norm|k_norm|ky_norm)\.(weight|bias)|attention\.gate",
  1: r"(wo|w2|mlp\.2|embedding_table)\.weight",
}


class MergedShards:
  """The shards of a tensor-parallel run as one state dict."""

  def __init__(self, shards: list[dict[str, Tensor]]):
    """Takes the tensors of each shard by key.

    Raises:
      ValueError: if the shards hold different keys.
    """
    for number, shard in enumerate(shards):
      if different := shard.keys() ^ shards[0].keys():
        keys = ", ".join(sorted(different))
        raise ValueError(f"shards 0 and {number} hold different keys: {keys}")
    self._shards = shards
    if len(shards) > 1 and any(k.endswith("q_norm.weight") for k in shards[0]):
      logging.warning(
        "%d shards: the original normalizes queries and keys over the heads "
        "of each shard; merged, the norm runs over all heads, so outputs "
        "differ slightly",
        len(shards),
      )

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the merged tensors by key."""
    return {key: self._shape(key) for key in self._shards[0]}

  def read(self, key: str) -> np.ndarray:
    """Reads one merged tensor."""
    parts = [shard[key] for shard in self._shards]
    axis = self._axis(key)
    if axis is None:
      return parts[0].read()
    return np.concatenate([part.read() for part in parts], axis=axis)

  def _shape(self, key: str) -> tuple[int, ...]:
    shape, axis = list(self._shards[0][key].shape), self._axis(key)
    if axis is not None:
      shape[axis] = sum(shard[key].shape[axis] for shard in self._shards)
    return tuple(shape)

  def _axis(self, key: str) -> int | None:
    if len(self._shards) == 1:
      return None
    for axis, pattern in SPLIT_AXES.items():
      if re.search(rf"(^|\.)({pattern})$", key):
        return axis
    return None
