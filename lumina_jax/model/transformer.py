"""The backbone with its parameters, as one thing to call."""

from __future__ import annotations

import dataclasses
from typing import Any

from lumina_jax.backbone import ModelConfig
from lumina_jax.model.velocity import Latents, predict_velocity


@dataclasses.dataclass(frozen=True)
class Transformer:
  """Attributes: config, of the network; params, of the backbone."""

  config: ModelConfig
  params: Any = dataclasses.field(repr=False)

  def __call__(self, latents: Latents, time: Any, **options: Any) -> Latents:
    """Velocity at x_t; arguments are those of `predict_velocity`."""
    return predict_velocity(self.config, self.params, latents, time, **options)
