"""Weights in the formats of PyTorch, and in our own.

load_pytorch, save_pytorch     PyTorch's formats
load_weights                   any format, ours included

pytorch, pytorch_files, shards         reading: path -> tensors -> parameters
pytorch_writer, destination            writing, whole or not at all
detect, state_dict, model_args         which network a state dict belongs to
names, lumina, diffusers               what each parameter is called
layout                                 how arrays are laid out, both ways
native, orbax                          our own folders
convert                                from any format to any other
language, vae                          the networks around the backbone
safetensors, pth                       the two kinds of file, read lazily
"""

import importlib

_PUBLIC = {
  "load_pytorch": "lumina_jax.interop.pytorch",
  "save_pytorch": "lumina_jax.interop.pytorch",
  "load_weights": "lumina_jax.interop.load",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  """Imports on first use, so that a part can be imported without the rest."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'lumina_jax.interop' has no {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)
