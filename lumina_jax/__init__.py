"""lumina_jax: text to any modality with flow-matching diffusion transformers.

tokens      the contract: every medium is a grid, every grid a token sequence
packing     samples of any sizes in rows of one size
pipeline    LuminaPipeline: prompts in, samples out
backbone    the network: tokens in, prediction out; attention: its kernels
flow        paths, losses, solvers, guidance: functions of (x, t)
model       a network with its text encoder; predict_velocity
media       what a picture, a video, a sound is; encoders: text and codecs
sampling    a call, from its arguments to samples
parallel    where arrays live; planning: what a run takes of other machines
training    a run; runs: its workdir and what people look at
pretrained  whole pipelines in folders; interop: weights from PyTorch and back
evaluation  judges and metrics; commands: how commands start; files: atomic

Commands: train, infer (also named sample), evaluate, convert, encode, plan;
python -m lumina_jax.<name>, or lumina <name>.
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
  """Imports public names on first use, so that data workers stay light."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'lumina_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  """Public names, for completion."""
  return [*globals(), *__all__]
