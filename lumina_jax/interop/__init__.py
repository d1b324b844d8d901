"""Other people's formats: weights from PyTorch and back.

load_pytorch, save_pytorch   PyTorch's formats
load_weights, formats        ours as well
source, infer                files -> tensors -> which network it is
names, lumina, diffusers     what each parameter is called, a table a layout
constructors                 model_args: the original's words for a network
layout                       our arrays and theirs, both ways
target, place                writing, whole or not at all
safetensors, pth             the two kinds of file, one tensor at a time
"""

import importlib

_PUBLIC = {
  "load_pytorch": "lumina_jax.interop.pytorch",
  "save_pytorch": "lumina_jax.interop.pytorch",
  "load_weights": "lumina_jax.interop.formats",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  """Imports on first use; `formats` needs more of the house than the rest."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'lumina_jax.interop' has no {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)
