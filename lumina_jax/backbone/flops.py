"""Counts the FLOPs of a network's matrix products from its configuration.

XLA counts the body of a scan once and Pallas kernels not at all, so FLOPs for
MFU are counted here (PaLM, Chowdhery et al. 2022, appendix B): two operations
per multiplication, full attention over all tokens of a row, no recomputation,
no elementwise operations.

B rows, L tokens, N samples and S text tokens a row, D width, H heads, G kv
heads, K head channels, F feed-forward, E text width, C cond width, P patch.
"""

import dataclasses

from lumina_jax.backbone.config import ModelConfig

SINUSOIDS = 256  # Inputs of the time embedder's MLP.


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one forward pass over all rows.

  Attributes:
    attention: scores and weighted sums of attention among tokens.
    text: scores and weighted sums of attention to text.
    rest: projections, feed-forwards, modulation, embedding.
    cached: the part of the rest that sampling computes once, see `TextCache`.
  """

  attention: int
  text: int
  rest: int
  cached: int = 0

  @property
  def forward(self) -> int:
    """All FLOPs of the pass."""
    return self.attention + self.text + self.rest

  @property
  def train(self) -> int:
    """FLOPs of forward and backward passes; backward has twice the products."""
    return 3 * self.forward

  def sample(self, evaluations: int) -> int:
    """FLOPs of so many evaluations with one cache of the text."""
    return evaluations * (self.forward - self.cached) + self.cached

  def recomputed(self, remat: str) -> int:
    """FLOPs that the backward pass recomputes under a policy.

    No kernel keeps scores. Beyond the four products that `train` counts, the
    backward pass of attention computes the scores twice and their cotangent a
    second time, because dq and (dk, dv) are separate passes.
    """
    scores = 3 * (self.attention + self.text) // 2
    kept = {
      "none": self.forward,
      "attention": self.attention,
      "offload_attention": self.attention,
    }.get(remat, 0)
    return scores + self.forward - kept


def count(
  cfg: ModelConfig, rows: int, tokens: int, words: int, samples: int = 1
) -> Flops:
  """Counts one forward pass.

  Per row and block:
    projections 4 L D K (H + G): queries and output, keys and values;
    scores and weighted sums 4 L (L + S) H K; text keys and values 4 S E G K;
    SwiGLU 6 L D F for each expert that a token uses;
    modulation 2 N C M D for M vectors.

  Args:
    cfg: configuration of the network.
    rows: B.
    tokens: L.
    words: S.
    samples: N.
  """
  text = words if cfg.text_width else 0
  attention = 4 * rows * cfg.depth * tokens * cfg.width
  block = _projections(cfg, tokens, text) + _feed_forwards(cfg, tokens, samples)
  keys_values = 4 * text * cfg.text_width * cfg.kv_heads * cfg.head_dim
  pool = 2 * samples * cfg.text_width * (text + cfg.cond_width) * bool(text)
  vectors = (3 if cfg.shift else 2) * (1 + len(cfg.feed_forwards))
  block += 2 * samples * cfg.cond_width * vectors * cfg.width
  cached = cfg.depth * keys_values + pool
  rest = cfg.depth * block + _ends(cfg, tokens, samples) + cached
  return Flops(attention * tokens, attention * text, rows * rest, rows * cached)


def _projections(cfg: ModelConfig, tokens: int, text: int) -> int:
  queries = 2 * cfg.width**2
  keys_values = 4 * cfg.kv_heads * cfg.head_dim
  each = 2 * queries + keys_values * cfg.width
  if cfg.text_query and text:
    each += queries
  return tokens * each


def _feed_forwards(cfg: ModelConfig, tokens: int, samples: int) -> int:
  total = 0
  swiglu = 6 * tokens * cfg.width * cfg.ffn_width
  for router in cfg.feed_forwards.values():
    total += swiglu * (cfg.active_experts if router else 1)
    if router == "time":
      total += 2 * samples * cfg.cond_width * cfg.experts
    elif router == "token":
      total += 2 * tokens * cfg.width * cfg.experts
  return total


def _ends(cfg: ModelConfig, tokens: int, samples: int) -> int:
  """FLOPs before and after the blocks."""
  patches = 4 * tokens * cfg.patch_dim * cfg.width
  time = 2 * samples * (SINUSOIDS + cfg.cond_width) * cfg.cond_width
  final = 2 * samples * cfg.cond_width * (1 + cfg.final_shift) * cfg.width
  return patches + time + final
