"""The diffusion transformer: noisy tokens in, predicted velocity out."""

from lumina_jax.backbone.config import PUBLISHED, ModelConfig
from lumina_jax.backbone.dit import DiT, shapes

__all__ = ["PUBLISHED", "DiT", "ModelConfig", "shapes"]
