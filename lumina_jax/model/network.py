"""The network as a whole: the backbone and the text encoder that feeds it.

Training and sampling hold one of these and its parameters, a nested dict with
the keys "backbone" and, where prompts are text, "text_encoder".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.encoders import label, utf8
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.tokens import Condition, Tokens, per_token

Params = Any


@dataclasses.dataclass(frozen=True)
class Network:
  """Pure functions of parameters; holds configurations only.

  Attributes:
    model: the backbone.
    text_encoder: of prompts: embedded and trained along, or frozen, and then
      features take the place of codes. None for a class-conditional network,
      whose prompts are the numbers of its classes.
    objective: what the backbone was trained to predict, and on which path.

  Raises:
    ValueError: if the encoder's width is not what the backbone takes, or the
      backbone takes text and classes.
  """

  model: ModelConfig
  text_encoder: utf8.Utf8Config | FrozenTextConfig | None
  objective: Objective = PLAIN

  def __post_init__(self):
    model = self.model
    if model.text_width and model.num_labels:
      raise ValueError(
        f"model.text_width = {model.text_width} and model.num_labels = "
        f"{model.num_labels}: prompts are text or classes; set one of them to 0"
      )
    width = self.text_encoder.width if self.text_encoder else 0
    if model.text_width != width:
      raise ValueError(
        f"model.text_width = {model.text_width} must equal "
        f"text_encoder.width = {width} (0 = no text encoder)"
      )

  @property
  def frozen_text(self) -> bool:
    """Whether prompts come encoded, as features `f32[S, E]`."""
    return isinstance(self.text_encoder, FrozenTextConfig)

  @property
  def code_width(self) -> int:
    """K: numbers that spell one word of a prompt."""
    encoder = self.text_encoder
    return encoder.code_width if encoder else label.CODE_WIDTH

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, boxed with their logical axes."""
    backbone, text_encoder = jax.random.split(key)
    tokens, condition = self._smallest()
    params = {
      "backbone": DiT(self.model).init(backbone, tokens, condition)["params"]
    }
    if self.text_encoder and not self.frozen_text:
      codes = jnp.zeros((1, 1, self.code_width), jnp.int32)
      params["text_encoder"] = utf8.Utf8Encoder(self.text_encoder).init(
        text_encoder, codes
      )["params"]
    return params

  def shapes(self) -> Params:
    """Shapes of the parameters, with no memory behind them."""
    return nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))

  def tokenize(
    self, prompt: str, origin: tuple[int, int] = (0, 0)
  ) -> np.ndarray:
    """Prompt -> `i32[S, K]` codes, lines and columns from `origin`; on host.

    Raises:
      ValueError: if the network takes classes and the prompt is none, or
        features of a frozen language model.
    """
    if self.text_encoder is None:
      return label.tokenize(self.model.num_labels, prompt)
    if self.frozen_text:
      raise ValueError(
        f"prompt {prompt!r}: this network takes features f32[S, "
        f"{self.text_encoder.width}] of a language model; give the pipeline a "
        "text_encoder, or prompt_embeds in place of prompt"
      )
    return utf8.tokenize(self.text_encoder, prompt, origin)

  def encode(self, params: Params, condition: Condition) -> Condition:
    """Replaces codes `i32[B, S, K]` by features `f32[B, S, E]` or labels."""
    if self.text_encoder is None:
      return label.to_labels(condition)
    if self.frozen_text:
      return condition
    encoder = utf8.Utf8Encoder(self.text_encoder)
    features = encoder.apply(
      {"params": params["text_encoder"]},
      condition.text,
    )
    return condition._replace(text=features)

  def velocity(
    self, params: Params, tokens: Tokens, condition: Condition
  ) -> jax.Array:
    """Velocity `f32[B, L, P]` at x_t = `tokens.patches`, whatever is predicted.

    The condition is what `encode` returns.
    """
    out = self.prediction(params, tokens, condition)
    if self.objective.prediction == "velocity":
      return out
    t = per_token(condition.time[..., None], tokens.segments)
    return self.objective.velocity(out, tokens.patches, t)

  def prediction(
    self, params: Params, tokens: Tokens, condition: Condition
  ) -> jax.Array:
    """What the backbone predicts, `f32[B, L, P]`, given what `encode` returns.

    It is the quantity that the objective names.
    """
    return DiT(self.model).apply(
      {"params": params["backbone"]}, tokens, condition
    )

  def prediction_and_balance(
    self, params: Params, tokens: Tokens, condition: Condition
  ) -> tuple[jax.Array, jax.Array]:
    """The prediction, and `f32[]`, how unequally the experts are used.

    The mean over all routers of what they sow into "balance".
    """
    prediction, sown = DiT(self.model).apply(
      {"params": params["backbone"]}, tokens, condition, mutable=["balance"]
    )
    leaves = [jnp.ravel(x) for x in jax.tree.leaves(sown["balance"])]
    return prediction, jnp.mean(jnp.concatenate(leaves))

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
      label=jnp.zeros((1, 1), jnp.int32),
      text=jnp.zeros((1, 1, cfg.text_width)),
      text_segments=one,
    )
    return tokens, condition
