"""Other people's formats: weights from PyTorch and back.

load_pytorch, save_pytorch   the two functions to call
source, infer                files -> tensors -> which network it is
names, lumina, diffusers     what each parameter is called, a table a layout
layout                       our arrays and theirs, both ways
target, place                writing, whole or not at all
safetensors, pth             the two kinds of file, one tensor at a time
"""

from lumina_jax.interop.pytorch import load_pytorch, save_pytorch

__all__ = ["load_pytorch", "save_pytorch"]
