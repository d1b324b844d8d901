"""Tokens in, velocity out. Of ours it imports `tokens` and `attention` only."""

from lumina_jax.backbone.config import PUBLISHED, ModelConfig
from lumina_jax.backbone.dit import DiT, shapes

__all__ = ["PUBLISHED", "DiT", "ModelConfig", "shapes"]
