"""The backbone with its parameters, as a callable."""

import dataclasses
from typing import Any

from lumina_jax.backbone import ModelConfig
from lumina_jax.model.conditioning import Latents
from lumina_jax.model.velocity import predict_velocity


@dataclasses.dataclass(frozen=True)
class Transformer:
  """A backbone that can be called.

  Attributes:
    config: of the backbone.
    params: parameters of the backbone.
  """

  config: ModelConfig
  params: Any = dataclasses.field(repr=False)

  def __call__(self, latents: Latents, time: Any, **options: Any) -> Latents:
    """The velocity at x_t; the arguments are those of `predict_velocity`."""
    return predict_velocity(self.config, self.params, latents, time, **options)
