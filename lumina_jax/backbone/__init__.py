"""The network: tokens and their condition in, velocity out."""

from lumina_jax.backbone.config import ModelConfig
from lumina_jax.backbone.dit import DiT

__all__ = ["DiT", "ModelConfig"]
