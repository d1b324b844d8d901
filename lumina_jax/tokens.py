"""The contract: every medium is a grid of latents, every grid a sequence.

A `Grid` cuts latents `f32[*shape, C]` of any rank into patches and lays them
out as one sequence of L tokens. `Tokens` holds rows of such sequences, with
several samples per row where they fit, and `Condition` holds the conditioning
of each sample. Positions, kinds and segments are data rather than static
shapes, so all resolutions under one token budget share one compiled program.

Takes numpy and jax arrays alike. It imports neither JAX nor Flax, so that data
workers stay light.

Shapes: B rows, L tokens a row, N samples a row, S text tokens a row,
A position axes, P = prod(patch) * C values a patch, E text width, K codes a
text token.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import einops
import numpy as np

PATCH, NEXTLINE, NEXTFRAME = 0, 1, 2

Array = Any  # np.ndarray | jax.Array


class Tokens(NamedTuple):
  """Rows of tokens; each row holds one or more samples, then padding.

  Attributes:
    patches: `f32[B, L, P]`, values of each patch in the order (p..., C), for
      inputs and outputs; zero for separators and padding.
    ids: `i32[B, L, A]`, position on A axes.
    kinds: `i32[B, L]`, PATCH, NEXTLINE or NEXTFRAME; PATCH for padding.
    segments: `i32[B, L]`, the sample of each token, from 1; 0 = padding.
  """

  patches: Array
  ids: Array
  kinds: Array
  segments: Array


class Condition(NamedTuple):
  """Conditioning of the N samples of each row.

  Attributes:
    time: `f32[B, N]`, from 0 (noise) to 1 (data).
    label: `i32[B, N]`, class of each sample.
    text: features `f32[B, S, E]`, or codes `i32[B, S, K]` that a trained
      encoder turns into features.
    text_segments: `i32[B, S]`, the sample of each text token; 0 = padding.
    sample_ids: `i32[B, N]`, ids that seed the random numbers of samples, so
      that places and neighbours in a batch do not change them.
    rope_rates: `f32[B, N, head_dim / 2]`, rotation of each channel pair of a
      head per position, from `backbone.rope`; None = as trained.
    attention_scale: `f32[B, N]`, factor of the scores of self-attention beside
      1 / sqrt(head_dim); None = 1.
  """

  time: Array | None = None
  label: Array | None = None
  text: Array | None = None
  text_segments: Array | None = None
  sample_ids: Array | None = None
  rope_rates: Array | None = None
  attention_scale: Array | None = None


@dataclasses.dataclass(frozen=True)
class Grid:
  """Latents of one size and their layout as a sequence of tokens.

  Attributes:
    shape: size of each axis, e.g. (height, width) or (frames, height, width).
    patch: size of a patch along each axis; divides `shape`.
    raster: True for one running index as position, False for one id per axis.
    separators: True adds a nextline token after each row of patches and, for
      three or more axes, a nextframe token after each frame (Lumina-T2X,
      section 2.2). Both count in the running index.
    origin: position of the first patch, one number per position axis; () = 0.

  Raises:
    ValueError: if the numbers of axes differ or `patch` does not divide
      `shape`.
  """

  shape: tuple[int, ...]
  patch: tuple[int, ...]
  raster: bool
  separators: bool
  origin: tuple[int, ...] = ()

  def __post_init__(self):
    if len(self.shape) != len(self.patch):
      raise ValueError(
        f"patch {self.patch} must have as many axes as the grid's shape "
        f"{self.shape}"
      )
    if len(self.origin) not in (0, 1 if self.raster else len(self.shape)):
      raise ValueError(
        f"origin {self.origin} must have one number per position axis"
      )
    for size, patch in zip(self.shape, self.patch, strict=True):
      if patch < 1:
        raise ValueError(f"patch {self.patch} must be positive")
      if size <= 0 or size % patch:
        near = max(patch, round(size / patch) * patch)
        raise ValueError(
          f"size {size} of {self.shape} is not a positive multiple of the "
          f"patch size {patch}; the nearest is {near}"
        )

  @property
  def counts(self) -> tuple[int, ...]:
    """Patches along each axis."""
    return tuple(s // p for s, p in zip(self.shape, self.patch, strict=True))

  @property
  def num_tokens(self) -> int:
    """L."""
    counts, separators = self.counts, 0
    if self.separators and len(counts) >= 2:
      separators += math.prod(counts[:-1])
    if self.separators and len(counts) >= 3:
      separators += math.prod(counts[:-2])
    return math.prod(counts) + separators

  @property
  def kinds(self) -> np.ndarray:
    """`i32[L]`: PATCH, NEXTLINE or NEXTFRAME."""
    return _layout(self.counts, self.separators)[0]

  @property
  def ids(self) -> np.ndarray:
    """`i32[L, A]`: the running index with A = 1, or one id per axis."""
    if self.raster:
      ids = np.arange(self.num_tokens, dtype=np.int32)[:, None]
    else:
      ids = _layout(self.counts, self.separators)[1]
    return ids + np.asarray(self.origin, np.int32) if self.origin else ids

  def tokenize(self, x: Array) -> Array:
    """`f32[..., *shape, C]` -> `f32[..., L, P]`; separators are zero.

    Raises:
      ValueError: for an array of another shape.
    """
    if x.shape[-len(self.shape) - 1 : -1] != self.shape:
      raise ValueError(f"expected [..., {self.shape}, C], got {x.shape}")
    patches = einops.rearrange(x, self._pattern(), **self._sizes())
    if not self.separators:
      return patches
    xp = x.__array_namespace__()
    blank = xp.zeros_like(patches[..., :1, :])
    cells = _layout(self.counts, self.separators)[2]
    return xp.take(xp.concat([patches, blank], axis=-2), cells, axis=-2)

  def detokenize(self, patches: Array) -> Array:
    """`f32[..., L, P]` -> `f32[..., *shape, C]`, the inverse of `tokenize`.

    Raises:
      ValueError: for another number of tokens.
    """
    if patches.shape[-2] != self.num_tokens:
      raise ValueError(
        f"{self.shape} takes {self.num_tokens} tokens, got {patches.shape[-2]}"
      )
    if self.separators:
      (places,) = np.nonzero(self.kinds == PATCH)
      patches = patches.__array_namespace__().take(patches, places, axis=-2)
    target, source = self._pattern().split(" -> ")
    return einops.rearrange(patches, f"{source} -> {target}", **self._sizes())

  def _pattern(self) -> str:
    axes = range(len(self.shape))
    grid = " ".join(f"(n{a} p{a})" for a in axes)
    cells = " ".join(f"n{a}" for a in axes)
    values = " ".join(f"p{a}" for a in axes)
    return f"... {grid} c -> ... ({cells}) ({values} c)"

  def _sizes(self) -> dict[str, int]:
    counts = {f"n{a}": n for a, n in enumerate(self.counts)}
    return counts | {f"p{a}": p for a, p in enumerate(self.patch)}


@functools.lru_cache(maxsize=4096)
def _layout(counts: tuple[int, ...], separators: bool):
  """Kinds `i32[L]`, ids `i32[L, A]`, patch indices `i32[L]` (-1 = none)."""
  kinds = np.full(counts, PATCH, np.int32)
  cells = np.arange(math.prod(counts), dtype=np.int32).reshape(counts)
  if separators and len(counts) >= 2:
    kinds = _append(kinds, NEXTLINE)
    cells = _append(cells, -1)
  ids = np.moveaxis(np.indices(kinds.shape, dtype=np.int32), 0, -1)
  if separators and len(counts) >= 3:
    frame = (*kinds.shape[:-2], -1)
    kinds = _append(kinds.reshape(frame), NEXTFRAME)
    cells = _append(cells.reshape(frame), -1)
    ids = ids.reshape(*frame, len(counts))
    # The position of a nextframe token is one row below its frame.
    after = ids[..., :1, :].copy()
    after[..., -2] = counts[-2]
    ids = np.concatenate([ids, after], axis=-2)
  flat = kinds.reshape(-1), ids.reshape(-1, len(counts)), cells.reshape(-1)
  for array in flat:
    array.setflags(write=False)
  return flat


def _append(x: np.ndarray, value: int) -> np.ndarray:
  widths = [(0, 0)] * (x.ndim - 1) + [(0, 1)]
  return np.pad(x, widths, constant_values=value)


def per_token(values: Array, segments: Array) -> Array:
  """Values of samples for their tokens: `[B, N, ...]` -> `[B, L or 1, ...]`.

  One sample per row is a broadcast, never a gather. `take_along_axis` keeps the
  sharding of rows, while fancy indexing would gather them on all devices.
  """
  if values.shape[1] == 1:
    return values
  xp = values.__array_namespace__()
  slots = xp.maximum(segments - 1, 0)
  slots = slots.reshape(slots.shape + (1,) * (values.ndim - 2))
  return xp.take_along_axis(values, slots, axis=1)
