"""What the backbone computes once per call rather than at each evaluation.

B rows, N samples a row, S text tokens, G kv heads, K head channels, C cond
width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import linen as nn

from lumina_jax.backbone.attention import TextProjections
from lumina_jax.backbone.config import ModelConfig
from lumina_jax.backbone.layers import TextPooler
from lumina_jax.tokens import Condition

KEYS = (None, "act_batch", None, "act_heads", None)


class TextCache(NamedTuple):
  """Text as every evaluation reads it: it does not depend on the time.

  Attributes:
    pooled: `f32[B, N, C]`, its share of the vector that modulates norms.
    keys: `[layers, B, S, G, K]`, normed keys of each layer.
    values: `[layers, B, S, G, K]`.
  """

  pooled: jax.Array
  keys: jax.Array
  values: jax.Array

  def first(self, rows: int) -> TextCache:
    """The cache of the first rows."""
    cut = lambda x: jax.lax.slice_in_dim(x, 0, rows, axis=1)  # noqa: E731
    return TextCache(self.pooled[:rows], cut(self.keys), cut(self.values))


def text_cache(
  cfg: ModelConfig, params: Any, condition: Condition, samples: int
) -> TextCache | None:
  """Computes the text's share of every evaluation.

  Args:
    cfg: the network.
    params: of the backbone.
    condition: with features `f32[B, S, E]`.
    samples: N.

  Returns:
    The cache to pass to `DiT`; None for a network without text.
  """
  if not cfg.text_width:
    return None
  pooled = TextPooler(cfg.cond_width).apply(
    {"params": params["text_pool"]},
    condition.text,
    condition.text_segments,
    samples,
  )

  def layer(_, params):
    project = TextProjections(cfg)
    return None, project.apply({"params": params}, condition.text)

  attention = params["blocks"]["attention"]
  names = ("text_norm", "text_key", "text_key_norm", "text_value")
  stacked = {name: attention[name] for name in names if name in attention}
  _, (keys, values) = jax.lax.scan(layer, None, stacked)
  constrain = nn.with_logical_constraint
  return TextCache(pooled, constrain(keys, KEYS), constrain(values, KEYS))
