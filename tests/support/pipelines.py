"""Pipelines as tests call them."""

import dataclasses

import numpy as np

from lumina_jax import LuminaPipeline


def replaced(pipe, options=None, sizes=None, **components) -> LuminaPipeline:
  """A pipeline with changes to its options, its sizes, or other components."""
  for name, changes in (("options", options), ("sizes", sizes)):
    if changes:
      old = getattr(pipe.components, name)
      components[name] = dataclasses.replace(old, **changes)
  return LuminaPipeline(dataclasses.replace(pipe.components, **components))


def distance(a, b) -> float:
  """The largest difference of two arrays."""
  return np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()
