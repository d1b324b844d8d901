"""Loads and saves folders of diffusers' AutoencoderKL.

autoencoder = load_vae("stable-diffusion-3-medium/vae", dtype="bfloat16")
save_vae(autoencoder, "for_diffusers/vae")
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.vae import VaeConfig, boxed_shapes
from lumina_jax.files.json_file import read_json, write_json
from lumina_jax.interop import destination, safetensors
from lumina_jax.interop.hugging_face import CONFIG, DIFFUSERS, read_tensors
from lumina_jax.interop.layout import Layout, Path
from lumina_jax.interop.shapes import check_shapes
from lumina_jax.interop.tensor import cast, dtype_of
from lumina_jax.interop.vae_names import (
  OLD_KEY,
  OLD_NAMES,
  config_json,
  vae_config,
  vae_names,
)
from lumina_jax.parallel.placement import place

Read = Callable[[Path, np.dtype], np.ndarray]


def open_vae(folder: str | os.PathLike) -> tuple[VaeConfig, Read]:
  """Finds an autoencoder and checks every name and shape, without reading.

  Arguments and errors are those of `load_vae`.

  Returns:
    The network, and a function that reads one parameter by path and dtype.
  """
  folder = pathlib.Path(folder).expanduser()
  if (folder / "vae" / CONFIG).exists():
    folder = folder / "vae"
  if not (folder / CONFIG).exists() or not any(folder.glob(f"{DIFFUSERS}*")):
    raise FileNotFoundError(
      f"no autoencoder in {folder}; expected {CONFIG} and "
      f"{DIFFUSERS}.safetensors, or several with an index, there or in vae/"
    )
  # Before the weights: other classes may have other files.
  cfg = vae_config(read_json(folder / CONFIG))
  found = read_tensors(folder, DIFFUSERS)
  layout = _layout(cfg)
  expected = layout.shapes()
  tensors = {}
  for key, tensor in found.items():
    old = OLD_KEY.fullmatch(key)
    if old and (new := f"{old[1]}{OLD_NAMES[old[2]]}{old[3]}") not in found:
      key = new
    if tensor.shape == (*expected.get(key, ()), 1, 1):
      tensor = tensor._replace(shape=tensor.shape[:2])
    tensors[key] = tensor
  check_shapes(expected, {key: x.shape for key, x in tensors.items()})

  def get(key: str) -> np.ndarray:
    # Attention may be stored as 1 x 1 convolutions.
    return tensors[key].read().reshape(tensors[key].shape)

  return cfg, lambda path, dtype: layout.read(path, get, dtype)


def load_vae(
  folder: str | os.PathLike, dtype: str | None = None, mesh: Mesh | None = None
) -> Autoencoder:
  """Loads an autoencoder of diffusers.

  Args:
    folder: a pipeline's vae/, or the pipeline's folder.
    dtype: dtype of parameters and computation, "float32" or "bfloat16"; None
      is float32.
    mesh: devices that each hold a copy; None uses one.

  Raises:
    FileNotFoundError: if the folder holds no autoencoder.
    ValueError: if it is of another class or its files are broken, listing every
      missing, unexpected and misshaped tensor.
  """
  cfg, read = open_vae(folder)
  cfg = dataclasses.replace(cfg, dtype=dtype or "float32")
  params = place(read, boxed_shapes(cfg), dtype_of(cfg.dtype), mesh)
  return Autoencoder(cfg, params)


def save_vae(
  autoencoder: Autoencoder,
  folder: str | os.PathLike,
  dtype: str = "float32",
  overwrite: bool = False,
) -> None:
  """Writes a folder that diffusers' `AutoencoderKL.from_pretrained` loads.

  Args:
    autoencoder: the autoencoder to write.
    folder: the folder, written whole or not at all.
    dtype: dtype of the file, "float32", "bfloat16" or "float16".
    overwrite: whether to replace existing weights.

  Raises:
    ValueError: if parameters do not fit the network, or float16 cannot hold
      them.
    FileExistsError: if the folder exists and `overwrite` is not set.
    OSError: if the disk has no room.
  """
  folder, kind = pathlib.Path(folder), dtype_of(dtype)
  cfg, flat = autoencoder.cfg, traverse_util.flatten_dict(autoencoder.params)
  check_shapes(
    {"/".join(path): shape for path, shape in _our_shapes(cfg).items()},
    {"/".join(path): x.shape for path, x in flat.items()},
  )
  layout = _layout(cfg)
  shapes = layout.shapes()
  nbytes = kind.itemsize * sum(map(math.prod, shapes.values()))
  with destination.staged(folder, nbytes, overwrite) as new:
    new.mkdir()
    whole = new / f"{DIFFUSERS}.safetensors"
    with safetensors.Writer(whole, shapes, kind) as file:
      for path, x in flat.items():
        array = np.asarray(jax.device_get(x))
        for key, theirs in layout.write(path, array):
          file.add(key, cast(theirs, kind, key))
    write_json(new / CONFIG, config_json(cfg))


def _our_shapes(cfg: VaeConfig) -> dict[Path, tuple[int, ...]]:
  flat = traverse_util.flatten_dict(nn.unbox(boxed_shapes(cfg)))
  return {path: x.shape for path, x in flat.items()}


def _layout(cfg: VaeConfig) -> Layout:
  return Layout(vae_names(cfg), _our_shapes(cfg))
