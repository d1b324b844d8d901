"""Our arrays and theirs: the same numbers, laid out otherwise.

In PyTorch a linear weight is (out, in), blocks and experts are numbered rather
than stacked, a patch enters as (C, p...) and leaves as (p..., 2C) whose second
half of channels, the sigma of an older objective, is never used. Here kernels
are (in, out) and split into heads, blocks are stacked, patches are (p..., C) on
both sides, and there is no sigma. All of it is linear, so gradients map too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import einops
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.interop.names import Name, Table

Path = tuple[str, ...]
Shape = tuple[int, ...]


class Layout:
  """A network in one table of names, both ways.

  Attributes:
    cfg: the network.
    table: our path -> their name.
  """

  def __init__(self, cfg: ModelConfig, table: Table, sigma: bool = True):
    """Makes a layout.

    Args:
      cfg: the network.
      table: of `names`.
      sigma: whether their last layer has the unused half.
    """
    self.cfg, self.table, self._sigma = cfg, table, sigma
    tree = traverse_util.flatten_dict(shapes(cfg))
    self._ours: dict[Path, Shape] = {path: x.shape for path, x in tree.items()}

  def shapes(self) -> dict[str, Shape]:
    """Their keys and the shapes of their arrays."""
    return {
      key: self._their_shape(path, name.kind)
      for path, name in self.table.items()
      for at in self._places(name)
      for key in self._keys(name, at)
    }

  def read(
    self,
    path: Path,
    get: Callable[[str], np.ndarray],
    dtype: np.dtype | None = None,
  ) -> np.ndarray:
    """Our array from theirs, which are asked for one at a time.

    Args:
      path: of our array.
      get: their key -> their array.
      dtype: of our array; None = of theirs.
    """
    name, out = self.table[path], None
    for at in self._places(name):
      (key, *_) = self._keys(name, at)
      theirs = get(key)
      if out is None:
        out = np.empty(self._ours[path], dtype or theirs.dtype)
      out[at] = self._to_ours(theirs, name.kind).reshape(out[at].shape)
    return out

  def write(
    self, path: Path, ours: np.ndarray
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Their keys and arrays from our array."""
    name = self.table[path]
    for at in self._places(name):
      theirs = self._to_theirs(ours[at], name.kind)
      theirs = theirs.reshape(self._their_shape(path, name.kind))
      for key in self._keys(name, at):
        yield key, theirs

  def _places(self, name: Name) -> Iterator[tuple[int, ...]]:
    """Where in our stacks of blocks and experts each of their arrays stands."""
    return np.ndindex(*self._stacks(name))

  def _stacks(self, name: Name) -> Shape:
    sizes = {"{i}": self.cfg.depth, "{e}": self.cfg.experts}
    return tuple(size for mark, size in sizes.items() if mark in name.keys[0])

  def _keys(self, name: Name, at: tuple[int, ...]) -> list[str]:
    block, expert = (*at, None, None)[:2]
    return [key.format(i=block, e=expert) for key in name.keys]

  def _to_ours(self, x: np.ndarray, kind: str) -> np.ndarray:
    channels = self.cfg.channels
    match kind:
      case "matrix" | "matrix_from_heads":
        return x.T
      case "patch_in":
        return einops.rearrange(x, "d (c p) -> (p c) d", c=channels)
      case "patch_out":
        x = einops.rearrange(x, "(p s c) d -> s d (p c)", **self._sigmas())
        return x[0]
      case "patch_out_bias":
        return einops.rearrange(x, "(p s c) -> s (p c)", **self._sigmas())[0]
      case "vector" | "table":
        return x
    raise AssertionError(kind)

  def _to_theirs(self, x: np.ndarray, kind: str) -> np.ndarray:
    cfg = self.cfg
    match kind:
      case "matrix":
        return x.reshape(x.shape[0], -1).T
      case "matrix_from_heads":
        return x.reshape(-1, x.shape[-1]).T
      case "patch_in":
        return einops.rearrange(x, "(p c) d -> d (c p)", c=cfg.channels)
      case "patch_out":
        x = self._with_sigma(x)
        return einops.rearrange(x, "s d (p c) -> (p s c) d", c=cfg.channels)
      case "patch_out_bias":
        x = self._with_sigma(x)
        return einops.rearrange(x, "s (p c) -> (p s c)", c=cfg.channels)
      case "vector" | "table":
        return x
    raise AssertionError(kind)

  def _their_shape(self, path: Path, kind: str) -> Shape:
    shape = self._ours[path][len(self._stacks(self.table[path])) :]
    match kind:
      case "matrix":
        return math.prod(shape[1:]), shape[0]
      case "matrix_from_heads":
        return shape[-1], math.prod(shape[:-1])
      case "patch_in":
        return shape[::-1]
      case "patch_out" | "patch_out_bias":
        return (shape[-1] * self._sigmas()["s"], *shape[:-1])
      case "vector":
        return (math.prod(shape),)
      case "table":
        return shape
    raise AssertionError(kind)

  def _sigmas(self) -> dict[str, int]:
    return dict(s=2 if self._sigma else 1, c=self.cfg.channels)

  def _with_sigma(self, x: np.ndarray) -> np.ndarray:
    """Puts zeros where the sigma was; nothing reads it."""
    return np.stack([x, np.zeros_like(x)] if self._sigma else [x])
