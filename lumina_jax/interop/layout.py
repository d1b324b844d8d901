"""Converts arrays between our layout and PyTorch's.

In PyTorch a linear weight is (out, in), a convolution is (out, in, h, w), and
blocks and experts have numbers. A patch enters as (C, p...) and leaves as
(p..., 2C); the second half of its channels, the sigma of an older objective, is
never used. Here kernels are (in, out) and split into heads, convolutions are
(h, w, in, out), blocks and experts are stacked, patches are (p..., C) on both
sides, and there is no sigma. The conversion is linear, so it converts gradients
too.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import einops
import numpy as np
from flax import traverse_util

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.interop.names import Name, NameTable

Path = tuple[str, ...]
Shape = tuple[int, ...]


class Layout:
  """Converts the parameters of one network by a name table.

  Attributes:
    table: Maps our paths to their keys.
  """

  def __init__(
    self,
    table: NameTable,
    ours: Mapping[Path, Shape],
    stacks: Mapping[str, int] | None = None,
    channels: int = 1,
    sigma: bool = False,
  ):
    """Makes a layout.

    Args:
      table: maps our paths to their keys.
      ours: shapes of our arrays by path.
      stacks: number of blocks "{i}" and experts "{e}" in our stacked arrays.
      channels: C of the patches.
      sigma: whether their last layer has the unused half.
    """
    self.table, self._ours, self._stacks = table, ours, stacks or {}
    self._channels, self._halves = channels, 2 if sigma else 1

  def shapes(self) -> dict[str, Shape]:
    """Shapes of their arrays by key."""
    return {
      key: self._their_shape(path, name)
      for path, name in self.table.items()
      for index in self._indices(name)
      for key in self._keys(name, index)
    }

  def read(
    self,
    path: Path,
    get: Callable[[str], np.ndarray],
    dtype: np.dtype | None = None,
  ) -> np.ndarray:
    """Makes our array from theirs, which it reads one at a time.

    Args:
      path: path of our array.
      get: returns their array of a key.
      dtype: dtype of our array; None keeps theirs.
    """
    name, out = self.table[path], None
    for index in self._indices(name):
      (key, *_) = self._keys(name, index)
      array = get(key)
      if out is None:
        out = np.empty(self._ours[path], dtype or array.dtype)
      array = self._to_ours(array, name.kind)
      out[index].reshape(array.shape)[...] = array  # Casts into a view.
    return out

  def write(
    self, path: Path, ours: np.ndarray
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their keys and arrays for our array."""
    name = self.table[path]
    for index in self._indices(name):
      theirs = self._to_theirs(ours[index], name.kind)
      theirs = theirs.reshape(self._their_shape(path, name))
      for key in self._keys(name, index):
        yield key, theirs

  def _sizes(self, name: Name) -> Shape:
    """Sizes of the stacked axes of our array: blocks, experts."""
    marks = (mark for mark in self._stacks if mark in name.keys[0])
    return tuple(self._stacks[mark] for mark in marks)

  def _indices(self, name: Name) -> Iterator[tuple[int, ...]]:
    """Indices (block, expert) of their arrays in our stacked array."""
    return np.ndindex(*self._sizes(name))

  def _keys(self, name: Name, index: tuple[int, ...]) -> list[str]:
    block, expert = (*index, None, None)[:2]
    return [key.format(i=block, e=expert) for key in name.keys]

  def _to_ours(self, x: np.ndarray, kind: str) -> np.ndarray:
    sizes = {"s": self._halves, "c": self._channels}
    match kind:
      case "matrix" | "matrix_from_heads":
        return x.T
      case "conv":
        return x.transpose(2, 3, 1, 0)
      case "patch_in":
        return einops.rearrange(x, "d (c p) -> (p c) d", c=self._channels)
      case "patch_out":
        return einops.rearrange(x, "(p s c) d -> s d (p c)", **sizes)[0]
      case "patch_out_bias":
        return einops.rearrange(x, "(p s c) -> s (p c)", **sizes)[0]
      case "vector" | "table":
        return x
    raise AssertionError(kind)

  def _to_theirs(self, x: np.ndarray, kind: str) -> np.ndarray:
    match kind:
      case "matrix":
        return x.reshape(x.shape[0], -1).T
      case "matrix_from_heads":
        return x.reshape(-1, x.shape[-1]).T
      case "conv":
        return x.transpose(3, 2, 0, 1)
      case "patch_in":
        return einops.rearrange(x, "(p c) d -> d (c p)", c=self._channels)
      case "patch_out":
        x = self._with_sigma(x)
        return einops.rearrange(x, "s d (p c) -> (p s c) d", c=self._channels)
      case "patch_out_bias":
        x = self._with_sigma(x)
        return einops.rearrange(x, "s (p c) -> (p s c)", c=self._channels)
      case "vector" | "table":
        return x
    raise AssertionError(kind)

  def _their_shape(self, path: Path, name: Name) -> Shape:
    shape = self._ours[path][len(self._sizes(name)) :]
    match name.kind:
      case "matrix":
        return math.prod(shape[1:]), shape[0]
      case "matrix_from_heads":
        return shape[-1], math.prod(shape[:-1])
      case "conv":
        return shape[3], shape[2], shape[0], shape[1]
      case "patch_in":
        return shape[::-1]
      case "patch_out" | "patch_out_bias":
        return (shape[-1] * self._halves, *shape[:-1])
      case "vector":
        return (math.prod(shape),)
      case "table":
        return shape
    raise AssertionError(name.kind)

  def _with_sigma(self, x: np.ndarray) -> np.ndarray:
    """Adds zeros for the sigma, which nothing reads."""
    return np.stack([x, np.zeros_like(x)][: self._halves])


def backbone_layout(cfg: ModelConfig, table: NameTable, sigma: bool) -> Layout:
  """The layout of a backbone; see `Layout`."""
  ours = traverse_util.flatten_dict(shapes(cfg))
  return Layout(
    table,
    {path: x.shape for path, x in ours.items()},
    {"{i}": cfg.depth, "{e}": cfg.experts},
    cfg.channels,
    sigma,
  )
