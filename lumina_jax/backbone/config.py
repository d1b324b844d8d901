"""One frozen description of a network; every variant is a set of its fields."""

from __future__ import annotations

import dataclasses
import math

from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Flag-DiT or Next-DiT of any size.

  Flag-DiT (Lumina-T2X, section 2) is raster positions with separators, shift
  and raw gates; Next-DiT (Lumina-Next, section 2) is one position per axis,
  sandwich norms and tanh gates without shift. The fields stand side by side,
  since published models mix them.

  Attributes:
    patch: extent of a patch on each axis of the medium: (2, 2) for images.
    channels: C of the latents (1 for grey pixels, 4 or 16 for a VAE).
    width: D of the residual stream.
    depth: number of blocks.
    heads: query heads; head_dim = width / heads, even.
    kv_heads: key and value heads (GQA); divides heads.
    cond_width: width of the vector that steers the norms; the original uses
      min(width, 1024) for images and width for audio.
    text_width: E of the text features; 0 = no text.
    num_labels: classes; 0 = none. Label `num_labels` is the null class.
    ffn_multiple: the SwiGLU width 8/3 D is rounded up to a multiple of this.
    raster: True = one running index (1-D RoPE), False = one position per axis.
    separators: learnt nextline (and nextframe) tokens in the sequence.
    sandwich: norm after attention and feed-forward too, not only before.
    pre_norm_scale: the norms before have a learnt scale.
    shift: modulation has shifts beside scales.
    tanh_gate: residual gates pass through tanh.
    final_shift: modulation before the last projection has a shift.
    qk_norm: LayerNorm over all heads of queries and of keys jointly.
    rope_theta: base of the rotary frequencies.
    time_scale: factor from our time (0..1) to the network's (audio: 1000).
    norm_eps: epsilon of RMSNorm and of the QK and text LayerNorms.
    dtype: "bfloat16" or "float32": what matrix products compute in.
      Parameters are always float32; so are norms, softmax and modulation.
    remat: recompute each block in the backward pass.
    unroll: layers per scan iteration; depth = fully unrolled, for debugging.
  """

  patch: tuple[int, ...]
  channels: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  cond_width: int
  text_width: int = 0
  num_labels: int = 0
  ffn_multiple: int = 256
  raster: bool = True
  separators: bool = True
  sandwich: bool = False
  pre_norm_scale: bool = True
  shift: bool = True
  tanh_gate: bool = False
  final_shift: bool = True
  qk_norm: bool = True
  rope_theta: float = 10_000.0
  time_scale: float = 1.0
  norm_eps: float = 1e-5
  dtype: str = "bfloat16"
  remat: bool = True
  unroll: int = 1

  def __post_init__(self):
    object.__setattr__(self, "patch", tuple(self.patch))
    if not self.patch or min(self.patch) < 1:
      raise ValueError(f"patch = {self.patch}: positive extents, one per axis")
    for name in (
      "channels",
      "width",
      "depth",
      "heads",
      "kv_heads",
      "cond_width",
      "ffn_multiple",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)} must be positive")
    for name, of in (("width", "heads"), ("heads", "kv_heads")):
      value, divisor = getattr(self, name), getattr(self, of)
      if value % divisor:
        raise ValueError(f"{name} = {value} is not divisible by {of}={divisor}")
    if self.head_dim % 2:
      raise ValueError(
        f"width / heads = {self.head_dim} must be even: RoPE rotates pairs"
      )
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"dtype {self.dtype!r}: use 'float32' or 'bfloat16'")
    if not self.text_width and not self.num_labels:
      raise ValueError(
        "nothing to condition on: text_width and num_labels are 0"
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def ffn_width(self) -> int:
    """8/3 D rounded up, as LLaMA does (lumina_t2i FeedForward)."""
    multiple = self.ffn_multiple
    return -(-int(8 * self.width / 3) // multiple) * multiple

  @property
  def patch_dim(self) -> int:
    """P: values of one patch."""
    return math.prod(self.patch) * self.channels

  @property
  def position_axes(self) -> int:
    """A: axes of a position."""
    return 1 if self.raster else len(self.patch)

  def grid(self, *shape: int) -> Grid:
    """The layout of a medium of this shape, e.g. `grid(height, width)`."""
    return Grid(tuple(shape), self.patch, self.raster, self.separators)
