"""Text keys and values, computed once per call instead of at each evaluation.

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

AXES = (None, "act_batch", None, "act_heads", None)  # Of keys and values.


class TextCache(NamedTuple):
  """The part of the text in every evaluation, which the time does not change.

  Attributes:
    pooled: `f32[B, N, C]`, its part of the vector that modulates the norms.
    keys: `[layers, B, S, G, K]`, normed keys of each layer.
    values: `[layers, B, S, G, K]`, values of each layer.
  """

  pooled: jax.Array
  keys: jax.Array
  values: jax.Array

  def first(self, rows: int) -> TextCache:
    """The cache of the first rows."""
    keys, values = (x[:, :rows] for x in (self.keys, self.values))
    return TextCache(self.pooled[:rows], keys, values)


def text_cache(
  cfg: ModelConfig, params: Any, condition: Condition, samples: int
) -> TextCache | None:
  """Computes the `text` argument of `DiT`.

  Args:
    cfg: configuration of the network.
    params: parameters of the backbone, unboxed.
    condition: condition with text features `f32[B, S, E]`.
    samples: N.

  Returns:
    The cache, or None for a network without text.
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
    variables = {"params": params}
    return None, TextProjections(cfg).apply(variables, condition.text)

  attention = params["blocks"]["attention"]
  names = ("text_norm", "text_key", "text_key_norm", "text_value")
  stacked = {name: attention[name] for name in names if name in attention}
  # A scan gathers the sharded kernels of one layer at a time.
  _, keys_values = jax.lax.scan(layer, None, stacked, unroll=cfg.unroll)
  keys, values = (nn.with_logical_constraint(x, AXES) for x in keys_values)
  return TextCache(pooled, keys, values)
