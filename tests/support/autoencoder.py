"""Small autoencoders with random parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from lumina_jax.encoders.vae import VaeConfig, boxed_shapes

SMALL = VaeConfig(widths=(16, 32), norm_groups=8, layers=1, shift_factor=0.2)


def random_params(cfg: VaeConfig, seed: int = 0) -> dict[str, Any]:
  """Parameters that differ from each other, from zero and from one."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    x = rng.standard_normal(shape.shape, np.float32)
    match path[-1].key:
      case "kernel":
        return x * np.float32(np.prod(shape.shape[:-1]) ** -0.5)
      case "scale":
        return 1 + np.float32(0.3) * x
    return np.float32(0.3) * x

  return jax.tree_util.tree_map_with_path(leaf, nn.unbox(boxed_shapes(cfg)))


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
  """Random values `f32[*shape]` in [-1, 1]."""
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
