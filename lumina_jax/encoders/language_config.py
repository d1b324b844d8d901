"""Config of a language model; its fields cover all families."""

import dataclasses
import functools

from flax import linen as nn

from lumina_jax.files.suggest import check_name

ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}
HIDDEN = ("last", "penultimate")
DTYPES = ("float32", "bfloat16", "float16")
NO_WINDOW = 1 << 30  # A window wider than any row.


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
  """Config of a language model: LLaMA, Gemma, Gemma-2 or Qwen3.

  Attributes:
    vocab: rows of the embedding table.
    width: width E of the hidden states.
    depth: layers of the whole model, run or not.
    heads: heads H of queries.
    kv_heads: heads G of keys and values: H for multi-head, fewer for grouped, 1
      for multi-query attention.
    head_dim: channels K of a head.
    ffn_width: width F of the feed-forward.
    activation: activation of the gated feed-forward, one of ACTIVATIONS.
    norm_eps: epsilon of every norm, added to the mean square.
    query_scale: factor of attention scores; mostly K^-1/2.
    norm_offset: offset of every norm's scale; Gemma stores scales minus 1.
    embed_scale: factor of embeddings, rounded to `dtype`; sqrt(E) in Gemma.
    rope_theta: base of the rotary angles.
    rope_factor: divisor of positions (linear scaling).
    score_cap: scores s become cap tanh(s / cap); 0 = no cap.
    window: number of keys that a query attends to in the 1st, 3rd, 5th...
      layer, its own among them; other layers attend to all. 0 = all layers do.
    post_norms: whether outputs of sublayers are normed too (Gemma-2).
    qk_norm: whether each head of queries and keys is normed (Qwen3).
    hidden: hidden state that the model returns: "last", after the final norm,
      or "penultimate", the input of the last layer; in transformers
      hidden_states[-1] and [-2]. The penultimate needs no last layer and no
      final norm, so the model has no parameters for them.
    dtype: dtype of activations and products; norms and softmax are float32.

  Raises:
    ValueError: if a value is invalid; names it.
  """

  vocab: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn_width: int
  activation: str
  norm_eps: float
  query_scale: float
  norm_offset: float = 0.0
  embed_scale: float = 1.0
  rope_theta: float = 1e4
  rope_factor: float = 1.0
  score_cap: float = 0.0
  window: int = 0
  post_norms: bool = False
  qk_norm: bool = False
  hidden: str = "penultimate"
  dtype: str = "float32"

  def __post_init__(self):
    for field, known in (
      ("activation", ACTIVATIONS),
      ("hidden", HIDDEN),
      ("dtype", DTYPES),
    ):
      check_name(field, getattr(self, field), known)
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim = {self.head_dim} must be even for RoPE")
    if self.layers < 1:
      raise ValueError(
        f"depth = {self.depth} leaves no layer before the {self.hidden} hidden "
        "state; set hidden = 'last'"
      )

  @property
  def layers(self) -> int:
    """Number of layers that run; only these have parameters."""
    return self.depth - (self.hidden == "penultimate")

  @property
  def windows(self) -> tuple[int, ...]:
    """Number of keys that a query attends to, for each layer that runs."""
    window = self.window or NO_WINDOW
    return tuple(NO_WINDOW if i % 2 else window for i in range(self.layers))
