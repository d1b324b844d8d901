"""The network as a whole: a text encoder and the backbone it feeds.

Training and sampling hold one of these and its parameters, a nested dict with
the keys "backbone" and "text_encoder".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.encoders import utf8
from lumina_jax.tokens import Condition, Tokens

Params = Any


@dataclasses.dataclass(frozen=True)
class Network:
  """Pure functions of parameters; holds configurations only.

  Raises:
    ValueError: if the encoder's width is not what the backbone takes.
  """

  model: ModelConfig
  text_encoder: utf8.Utf8Config

  def __post_init__(self):
    if self.model.text_width != self.text_encoder.width:
      raise ValueError(
        f"model.text_width = {self.model.text_width} must equal "
        f"text_encoder.width = {self.text_encoder.width}"
      )

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, boxed with their logical axes."""
    backbone, text_encoder = jax.random.split(key)
    tokens, condition = self._smallest()
    codes = jnp.zeros((1, 1, self.text_encoder.code_width), jnp.int32)
    return {
      "backbone": DiT(self.model).init(backbone, tokens, condition)["params"],
      "text_encoder": utf8.Utf8Encoder(self.text_encoder).init(
        text_encoder, codes
      )["params"],
    }

  def shapes(self) -> Params:
    """Shapes of the parameters, with no memory behind them."""
    return nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))

  def tokenize(
    self, prompt: str, origin: tuple[int, int] = (0, 0)
  ) -> np.ndarray:
    """Prompt -> `i32[S, K]` codes, lines and columns from `origin`; on host."""
    return utf8.tokenize(self.text_encoder, prompt, origin)

  def encode(self, params: Params, condition: Condition) -> Condition:
    """Replaces text codes `i32[B, S, K]` by features `f32[B, S, E]`."""
    encoder = utf8.Utf8Encoder(self.text_encoder)
    features = encoder.apply(
      {"params": params["text_encoder"]},
      condition.text,
    )
    return condition._replace(text=features)

  def velocity(
    self, params: Params, tokens: Tokens, condition: Condition
  ) -> jax.Array:
    """Velocity `f32[B, L, P]`, given text features."""
    return DiT(self.model).apply(
      {"params": params["backbone"]}, tokens, condition
    )

  def _smallest(self) -> tuple[Tokens, Condition]:
    cfg = self.model
    one = jnp.ones((1, 1), jnp.int32)
    tokens = Tokens(
      patches=jnp.zeros((1, 1, cfg.patch_dim)),
      ids=jnp.zeros((1, 1, cfg.position_axes), jnp.int32),
      kinds=jnp.zeros((1, 1), jnp.int32),
      segments=one,
    )
    condition = Condition(
      time=jnp.zeros((1, 1)),
      text=jnp.zeros((1, 1, cfg.text_width)),
      text_segments=one,
    )
    return tokens, condition
