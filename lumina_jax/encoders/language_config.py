"""What one language model is: sizes, and what tells the families apart."""

from __future__ import annotations

import dataclasses

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
HIDDEN = ("last", "penultimate")
DTYPES = ("float32", "bfloat16", "float16")
EVERYTHING = 1 << 30  # A window wider than any row.


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
  """What one language model is.

  Attributes:
    vocab: rows of the table of embeddings.
    width: E.
    depth: layers of the whole model, also of a part that is never run.
    heads: H.
    kv_heads: G; H = multi-head, fewer = grouped, 1 = multi-query attention.
    head_dim: K.
    ffn_width: F.
    activation: of the gated feed-forward, one of ACTIVATIONS.
    norm_eps: added to the mean square in every norm.
    norm_offset: added to every norm's scale; Gemma's are stored less 1.
    embed_scale: factor on embeddings, rounded to `dtype`; sqrt(E) in Gemma.
    rope_theta: base of the rotary angles.
    rope_factor: positions are divided by it (linear scaling).
    query_scale: factor on attention's scores, K^-1/2 unless a file says so.
    score_cap: scores s become cap tanh(s / cap); 0 = as they are.
    window: keys that a query of the 1st, 3rd, 5th... layer sees, itself among
      them; the other layers see all. 0 = every layer does.
    post_norms: whether a sublayer's output is normed too (Gemma-2).
    qk_norm: whether each head of queries and keys is normed (Qwen3).
    hidden: which hidden state is returned, "last", after the final norm, or
      "penultimate", what enters the last layer: transformers' hidden_states
      [-1] and [-2]. The penultimate needs neither last layer nor final norm,
      so that the model has no parameters for them.
    dtype: of activations and products; norms and softmax are in float32.

  Raises:
    ValueError: naming the first value that cannot be.
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
      if getattr(self, field) not in known:
        raise ValueError(
          f"{field} = {getattr(self, field)!r}: use one of {', '.join(known)}"
        )
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim = {self.head_dim} must be even to be rotated")
    if self.layers < 1:
      raise ValueError(
        f"depth = {self.depth} leaves no layer before the {self.hidden} hidden "
        "state; ask for hidden = 'last'"
      )

  @property
  def layers(self) -> int:
    """Layers that are run, and have parameters."""
    return self.depth - (self.hidden == "penultimate")

  @property
  def windows(self) -> tuple[int, ...]:
    """For each layer that is run, how many keys a query sees."""
    window = self.window or EVERYTHING
    return tuple(EVERYTHING if i % 2 else window for i in range(self.layers))
