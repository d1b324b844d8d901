"""lumina_jax: text to any modality with flow-matching diffusion transformers.

tokens     the contract: every medium is a grid, every grid a sequence
backbone   tokens in, velocity out: the only network
flow       paths, losses, solvers, guidance: functions v(x, t), no network
encoders   text and media to features and back
parallel   where arrays live; planning: on machines that one does not own
training   a state and its life
interop    other people's weights, in and out
pipeline   LuminaPipeline: prompt in, media out; velocity: the network alone
train, sample, evaluate, convert, plan: commands, python -m lumina_jax.<name>
"""

import importlib

_PUBLIC = {
  "LuminaPipeline": "lumina_jax.pipeline",
  "predict_velocity": "lumina_jax.model.velocity",
  "load_pytorch": "lumina_jax.interop",
  "save_pytorch": "lumina_jax.interop",
  "load_weights": "lumina_jax.interop",
  "ModelConfig": "lumina_jax.backbone",
  "DiT": "lumina_jax.backbone",
  "Network": "lumina_jax.model.network",
  "Grid": "lumina_jax.tokens",
  "Tokens": "lumina_jax.tokens",
  "Condition": "lumina_jax.tokens",
}

__version__ = "0.1.0"
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  """Imports public names on first use, so that a data worker stays light."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'lumina_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)
