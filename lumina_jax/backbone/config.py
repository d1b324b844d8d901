"""The configuration of a network; every variant is a set of its fields."""

import dataclasses
import math

from lumina_jax.attention import kernels, split
from lumina_jax.backbone import remat
from lumina_jax.files import schema
from lumina_jax.files.suggest import check_name
from lumina_jax.tokens import Grid

# Fields that change how a network computes, but not which function it is.
COMPUTING = ("dtype", "remat", "unroll", "attention_kernel", "sequence_split")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Flag-DiT or Next-DiT of any size.

  Flag-DiT (Lumina-T2X, section 2) has raster positions with separators, shifts
  and plain gates. Next-DiT (Lumina-Next, section 2) has one position per axis,
  sandwich norms and tanh gates, and no shifts. Every feature is a field of its
  own because published models mix them.

  Attributes:
    patch: size of a patch along each axis of the medium: (2, 2) for images.
    channels: C, channels of the latents (1 for grey pixels, 4 or 16 for a VAE).
    width: D, width of the residual stream.
    depth: number of blocks.
    heads: H, query heads; head_dim = width / heads must be even.
    kv_heads: G, key and value heads (GQA); must divide heads.
    cond_width: width of the vector that modulates the norms; the original uses
      min(width, 1024) for images and width for audio.
    text_width: E, width of the text features; 0 = no text.
    num_labels: number of classes; 0 = none. Label `num_labels` is the null
      class.
    ffn_multiple: the SwiGLU width 8/3 D is rounded up to a multiple of this.
    ffn_factor: factor of 8/3 D before rounding; 1 in all published networks.
    routing: router of each feed-forward in a block: () for one feed-forward
      without experts, ("time",), ("token",), or both in this order
      (Next-DiT-MoE, which calls "token" "space").
    experts: number of experts of each routed feed-forward.
    active_experts: experts that each token uses.
    balance_weight: weight of the load-balancing loss in training; the original
      has none.
    raster: True = one running index (1-D RoPE), False = one position per axis.
    separators: learnt nextline (and nextframe) tokens in the sequence.
    pad_token: learnt embedding of padding tokens; published text-to-image
      networks have one, although it does not change their output.
    sandwich: norms after attention and feed-forward as well as before.
    pre_norm_scale: norms before attention and feed-forward have a learnt scale.
    shift: modulation has shifts as well as scales.
    tanh_gate: residual gates pass through tanh.
    final_shift: modulation before the last projection has a shift.
    qk_norm: LayerNorm of queries and of keys, each over all heads jointly.
    text_query: attention to text has its own queries; published networks share
      those of self-attention, diffusers can train them separately.
    zero_text_pool: the projection of pooled text starts at zero; False, as in
      the original's audio networks, starts it like any other projection.
    rope_theta: base of the rotary frequencies.
    rope_linear: divisor of positions when no `RopeScaling` applies.
    rope_ntk: factor of rope_theta when no `RopeScaling` applies.
    time_scale: factor from our time (0 to 1) to the network's (audio: 1000).
    norm_eps: epsilon of every RMSNorm.
    dtype: "bfloat16" or "float32", the dtype of matrix products. Parameters,
      norms, softmax and modulation are always float32, and so is the residual
      stream where tokens choose experts.
    remat: what the backward pass recomputes, a name of `remat.POLICIES`.
    attention_kernel: "auto" chooses by platform; see `attention.kernels`.
    sequence_split: how attention over a sharded sequence is split; "auto" sends
      the least, see `attention.split`.
    unroll: layers per scan iteration; depth = fully unrolled, for debugging.

  Raises:
    ValueError: if a value is unsupported or two fields contradict each other.
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
  ffn_factor: float = 1.0
  routing: tuple[str, ...] = ()
  experts: int = 0
  active_experts: int = 2
  balance_weight: float = 0.0
  raster: bool = True
  separators: bool = True
  pad_token: bool = False
  sandwich: bool = False
  pre_norm_scale: bool = True
  shift: bool = True
  tanh_gate: bool = False
  final_shift: bool = True
  qk_norm: bool = True
  text_query: bool = False
  zero_text_pool: bool = True
  rope_theta: float = 10_000.0
  rope_linear: float = 1.0
  rope_ntk: float = 1.0
  time_scale: float = 1.0
  norm_eps: float = 1e-5
  dtype: str = "bfloat16"
  remat: str = "full"
  attention_kernel: str = "auto"
  sequence_split: str = "auto"
  unroll: int = 1

  def __post_init__(self):
    object.__setattr__(self, "patch", tuple(self.patch))
    object.__setattr__(self, "routing", tuple(self.routing))
    kernels.check_name(self.attention_kernel)
    split.check_name(self.sequence_split)
    check_name("remat", self.remat, remat.POLICIES)
    check_name("dtype", self.dtype, ("float32", "bfloat16"))
    if not self.patch or min(self.patch) < 1:
      raise ValueError(
        f"patch = {self.patch} must be positive sizes, one per axis"
      )
    names = "channels", "width", "depth", "heads", "kv_heads", "cond_width"
    schema.check_positive(self, *names, "ffn_multiple")
    for name, other in (("width", "heads"), ("heads", "kv_heads")):
      value, divisor = getattr(self, name), getattr(self, other)
      if value % divisor:
        raise ValueError(
          f"{name} = {value} is not divisible by {other} = {divisor}"
        )
    if self.head_dim % 2:
      raise ValueError(
        f"width / heads = {self.head_dim} must be even: RoPE rotates pairs"
      )
    self._check_experts()
    if not self.text_width and not self.num_labels:
      raise ValueError(
        "text_width = 0 and num_labels = 0: a network needs one of them as its "
        "condition"
      )

  def _check_experts(self):
    if self.routing not in ((), ("time",), ("token",), ("time", "token")):
      raise ValueError(
        f"routing {self.routing}: use (), ('time',), ('token',) or "
        "('time', 'token')"
      )
    if bool(self.routing) != bool(self.experts):
      raise ValueError(
        f"experts = {self.experts} with routing {self.routing}: set both or "
        "neither"
      )
    if self.routing and not 1 <= self.active_experts <= self.experts:
      raise ValueError(
        f"active_experts = {self.active_experts} must lie between 1 and "
        f"experts = {self.experts}"
      )

  @property
  def head_dim(self) -> int:
    """K: channels of a head."""
    return self.width // self.heads

  @property
  def ffn_width(self) -> int:
    """F: 8/3 D rounded up, as in LLaMA (lumina_t2i FeedForward)."""
    hidden = int(self.ffn_factor * int(8 * self.width / 3))
    return -(-hidden // self.ffn_multiple) * self.ffn_multiple

  @property
  def feed_forwards(self) -> dict[str, str | None]:
    """Name of each feed-forward of a block -> its router, or None."""
    if len(self.routing) > 1:
      return {f"feed_forward_{router}": router for router in self.routing}
    return {"feed_forward": self.routing[0] if self.routing else None}

  @property
  def patch_dim(self) -> int:
    """P: values of one patch."""
    return math.prod(self.patch) * self.channels

  @property
  def position_axes(self) -> int:
    """A: number of position axes."""
    return 1 if self.raster else len(self.patch)

  def grid(self, *shape: int) -> Grid:
    """The layout of latents of this shape, e.g. `grid(height, width)`."""
    return Grid(tuple(shape), self.patch, self.raster, self.separators)


def _image(width: int, depth: int, **fields) -> ModelConfig:
  """A published image network: VAE latents, patches of 2 x 2, 32 heads."""
  common = dict(
    patch=(2, 2), channels=4, heads=32, kv_heads=32, cond_width=1024
  )
  return ModelConfig(width=width, depth=depth, **common | fields)


NEXT_DIT = dict(
  raster=False, separators=False, sandwich=True, shift=False, tanh_gate=True
)
# Text: LLaMA-2-7B features for Flag-DiT, Gemma-2B features for Next-DiT.
FLAG_T2I = dict(text_width=4096, pad_token=True)
NEXT_T2I = NEXT_DIT | dict(text_width=2048, pad_token=True, final_shift=False)
FLAG_IMAGENET = dict(separators=False, num_labels=1000)
NEXT_IMAGENET = NEXT_DIT | dict(pre_norm_scale=False, num_labels=1000)

# Names follow the papers. They are not parameter counts: "3b" has 4.0 to 4.2
# billion parameters, "2b_gqa" 1.63, a "600m" with experts 2.7.
PUBLISHED: dict[str, ModelConfig] = {
  # Lumina-T2X (arXiv 2405.05945), lumina_t2i: DiT_Llama_5B_patch2.
  "flag_dit_t2i_5b": _image(3072, 32, **FLAG_T2I),
  # Lumina-Next (arXiv 2406.18583), lumina_next_t2i: NextDiT_2B_patch2,
  # NextDiT_2B_GQA_patch2 (the released one), and the same with 16 channels of
  # SD3's VAE.
  "next_dit_t2i_2b": _image(2304, 24, **NEXT_T2I),
  "next_dit_t2i_2b_gqa": _image(2304, 24, kv_heads=8, **NEXT_T2I),
  "next_dit_t2i_2b_gqa_sd3": _image(
    2304, 24, kv_heads=8, channels=16, **NEXT_T2I
  ),
  # Flag-DiT-ImageNet and Next-DiT-ImageNet: DiT_Llama_{600M,...}_patch2.
  "flag_dit_imagenet_600m": _image(1536, 16, **FLAG_IMAGENET),
  "flag_dit_imagenet_3b": _image(3072, 32, **FLAG_IMAGENET),
  "flag_dit_imagenet_7b": _image(4096, 32, **FLAG_IMAGENET),
  "next_dit_imagenet_600m": _image(1536, 16, **NEXT_IMAGENET),
  "next_dit_imagenet_2b": _image(2304, 24, **NEXT_IMAGENET),
  "next_dit_imagenet_3b": _image(3072, 32, **NEXT_IMAGENET),
  "next_dit_imagenet_7b": _image(4096, 32, **NEXT_IMAGENET),
  # Next-DiT-MoE: models.py, models1.py ("space") and models2.py ("both").
  "next_dit_moe_time_600m": _image(
    1536, 16, routing=("time",), experts=8, **NEXT_IMAGENET
  ),
  "next_dit_moe_time_600m_gqa": _image(
    1536, 16, kv_heads=8, routing=("time",), experts=8, **NEXT_IMAGENET
  ),
  "next_dit_moe_time_2b": _image(
    2304, 24, routing=("time",), experts=8, **NEXT_IMAGENET
  ),
  "next_dit_moe_token_600m": _image(
    1536, 16, routing=("token",), experts=8, **NEXT_IMAGENET
  ),
  "next_dit_moe_both_600m": _image(
    1536, 16, routing=("time", "token"), experts=4, **NEXT_IMAGENET
  ),
  # lumina_audio and lumina_music: FlagDiTv2. The original's sampler counts time
  # in whole steps from 0 to 999.
  "flag_dit_audio": ModelConfig(
    patch=(1,),
    channels=20,
    width=768,
    depth=16,
    heads=32,
    kv_heads=32,
    cond_width=768,
    text_width=1024,
    raster=True,
    separators=False,
    qk_norm=False,
    zero_text_pool=False,
    time_scale=1000.0,
  ),
}
