"""The network: a backbone and the text encoder that feeds it.

Its parameters are a nested dict with the keys "backbone" and, if a text encoder
is trained along, "text_encoder".
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.backbone.cache import TextCache, text_cache
from lumina_jax.backbone.dit import example_inputs
from lumina_jax.encoders import label, utf8
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.tokens import Condition, Tokens, per_token

Params = Any


class Constants(NamedTuple):
  """Values that the network computes once per call.

  Attributes:
    condition: with text features `f32[B, S, E]` or labels; the time is set at
      each evaluation.
    text: keys and values of the text in every layer; None without text.
  """

  condition: Condition
  text: TextCache | None

  def first(self, rows: int) -> Constants:
    """The constants of the first rows."""
    condition = jax.tree.map(lambda x: x[:rows], self.condition)
    return Constants(condition, self.text and self.text.first(rows))


@dataclasses.dataclass(frozen=True)
class Network:
  """Configurations of a network, and pure functions of its parameters.

  Attributes:
    model: the backbone.
    text_encoder: the text encoder: a config of one that is trained along, or of
      a frozen language model, whose features then replace codes. None for a
      class-conditional network, whose prompts are class numbers.
    objective: the quantity that the backbone predicts, and its path.

  Raises:
    ValueError: if the encoder's width differs from the backbone's text width,
      or the backbone takes both text and classes.
  """

  model: ModelConfig
  text_encoder: utf8.Utf8Config | TextFeaturesConfig | None
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
    """Whether a frozen language model encodes prompts, as `f32[S, E]`."""
    return isinstance(self.text_encoder, TextFeaturesConfig)

  @property
  def code_width(self) -> int:
    """K: values that represent one word of a prompt."""
    encoder = self.text_encoder
    return encoder.code_width if encoder else label.CODE_WIDTH

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, boxed with their logical axes."""
    backbone, text_encoder = jax.random.split(key)
    inputs = example_inputs(self.model)
    params = {"backbone": DiT(self.model).init(backbone, *inputs)["params"]}
    if self.text_encoder and not self.frozen_text:
      codes = jnp.zeros((1, 1, self.code_width), jnp.int32)
      params["text_encoder"] = utf8.Utf8Encoder(self.text_encoder).init(
        text_encoder, codes
      )["params"]
    return params

  def shapes(self) -> Params:
    """Shapes of the parameters, without allocating them."""
    return nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))

  def tokenize(
    self, prompt: str, origin: tuple[int, int] = (0, 0)
  ) -> np.ndarray:
    """Converts a prompt to codes `i32[S, K]` on the host.

    Args:
      prompt: text, or the number of a class.
      origin: line and column of the first word.

    Raises:
      ValueError: if the network takes classes and the prompt is not one, or if
        it takes features of a frozen language model.
    """
    if self.text_encoder is None:
      return label.tokenize(self.model.num_labels, prompt)
    if self.frozen_text:
      raise ValueError(
        f"prompt {prompt!r}: this network takes features f32[S, "
        f"{self.text_encoder.width}] of a language model; load the pipeline "
        "with a text_encoder, or pass prompt_embeds instead of prompt"
      )
    return utf8.tokenize(self.text_encoder, prompt, origin)

  def encode(self, params: Params, condition: Condition) -> Condition:
    """Encodes codes `i32[B, S, K]` as features `f32[B, S, E]` or labels."""
    if self.text_encoder is None:
      return label.to_labels(condition)
    if self.frozen_text:
      return condition
    encoder = utf8.Utf8Encoder(self.text_encoder)
    text = encoder.apply({"params": params["text_encoder"]}, condition.text)
    return condition._replace(text=text)

  def constants(self, params: Params, condition: Condition) -> Constants:
    """Computes everything that does not change between evaluations.

    Args:
      params: of the network.
      condition: with codes or features of the prompts, and `sample_ids [B, N]`.
    """
    condition = self.encode(params, condition)
    samples = condition.sample_ids.shape[1]
    backbone = params["backbone"]
    text = text_cache(self.model, backbone, condition, samples)
    if text is not None:  # Nothing else reads the features.
      condition = condition._replace(text=None)
    return Constants(condition, text)

  def first_memory(self, tokens: Tokens, constants: Constants) -> Any:
    """The velocity's memory before its first evaluation: none.

    Args:
      tokens: layout of all rows, with guidance those of both branches.
      constants: of the call, for as many rows.
    """
    return ()

  def velocity(
    self, params: Params, tokens: Tokens, constants: Constants, memory: Any = ()
  ) -> tuple[jax.Array, Any]:
    """Predicts the velocity at x_t = `tokens.patches`.

    Args:
      params: of the network.
      tokens: noisy patches and their layout.
      constants: of the call, their condition with the time `f32[B, N]`.
      memory: of the velocity, passed through.

    Returns:
      Velocity `f32[B, L, P]`, whatever the backbone predicts, and the memory.
    """
    condition, text = constants
    out = self.prediction(params, tokens, condition, text)
    if self.objective.prediction != "velocity":
      t = per_token(condition.time[..., None], tokens.segments)
      out = self.objective.velocity(out, tokens.patches, t)
    return out, memory

  def prediction(
    self,
    params: Params,
    tokens: Tokens,
    condition: Condition,
    text: TextCache | None = None,
  ) -> jax.Array:
    """The backbone's prediction `f32[B, L, P]`, the quantity of the objective.

    Args:
      params: of the network.
      tokens: noisy patches and their layout.
      condition: from `encode`, with the time.
      text: from `constants`; None = computed here.
    """
    model = DiT(self.model)
    return model.apply({"params": params["backbone"]}, tokens, condition, text)

  def prediction_and_balance(
    self, params: Params, tokens: Tokens, condition: Condition
  ) -> tuple[jax.Array, jax.Array]:
    """The prediction, and the load-balancing loss `f32[]`.

    The loss is the mean of the values that all routers sow into "balance".
    """
    prediction, sown = DiT(self.model).apply(
      {"params": params["backbone"]}, tokens, condition, mutable=["balance"]
    )
    leaves = [jnp.ravel(x) for x in jax.tree.leaves(sown["balance"])]
    return prediction, jnp.mean(jnp.concatenate(leaves))
