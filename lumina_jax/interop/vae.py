"""Folders of diffusers' AutoencoderKL: names, config.json, reading, writing.

autoencoder = load_vae("stable-diffusion-3-medium/vae", dtype="bfloat16")
save_vae(autoencoder, "for_diffusers/vae")
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.vae import VaeConfig, boxed_shapes
from lumina_jax.interop import place as destination
from lumina_jax.interop import safetensors, source
from lumina_jax.interop.comparison import check
from lumina_jax.interop.names import Table
from lumina_jax.interop.source import CONFIG, DIFFUSERS
from lumina_jax.interop.target import check_destination
from lumina_jax.interop.tensor import Tensor, dtype_of
from lumina_jax.interop.vae_names import (
  OLD,
  OLD_KEY,
  TO_OURS,
  TO_THEIRS,
  config_json,
  vae_config,
  vae_names,
)
from lumina_jax.parallel.placement import place


@dataclasses.dataclass(frozen=True)
class VaeWeights:
  """An autoencoder on a disk, checked and ready to be read.

  Attributes:
    cfg: the network.
    table: our parameters and their keys.
  """

  cfg: VaeConfig
  table: Table
  _tensors: dict[str, Tensor]

  def read(self, path: tuple[str, ...], dtype: np.dtype) -> np.ndarray:
    """One of our parameters, by its path."""
    ((key,), kind) = self.table[path]
    theirs = self._tensors[key]
    # An attention may be stored as a convolution of a single place.
    array = theirs.read().reshape(theirs.shape)
    return array.transpose(TO_OURS[kind]).astype(dtype, order="C")


def open_vae(folder: str | os.PathLike) -> VaeWeights:
  """Finds an autoencoder and checks every name and shape, without reading.

  Arguments and errors are those of `load_vae`.
  """
  folder = pathlib.Path(folder).expanduser()
  if (folder / "vae" / CONFIG).exists():
    folder = folder / "vae"
  if not (folder / CONFIG).exists() or not any(folder.glob(f"{DIFFUSERS}*")):
    raise FileNotFoundError(
      f"no autoencoder in {folder}; looked for {CONFIG} and "
      f"{DIFFUSERS}.safetensors, or several with an index, there and in vae/"
    )
  # Before the weights: a network of another kind may keep them otherwise.
  cfg = vae_config(source.read_json(folder / CONFIG))
  (found,) = source.find(folder).shards
  table, expected = vae_names(cfg), _their_shapes(cfg)
  tensors = {}
  for key, tensor in found.items():
    old = OLD_KEY.fullmatch(key)
    if old and (new := f"{old[1]}{OLD[old[2]]}{old[3]}") not in found:
      key = new
    if tensor.shape == (*expected.get(key, ()), 1, 1):
      tensor = tensor._replace(shape=tensor.shape[:2])
    tensors[key] = tensor
  check(expected, {key: tensor.shape for key, tensor in tensors.items()})
  return VaeWeights(cfg, table, tensors)


def load_vae(
  folder: str | os.PathLike,
  dtype: str | None = None,
  mesh: Mesh | None = None,
) -> Autoencoder:
  """Reads an autoencoder of diffusers.

  Args:
    folder: a pipeline's vae/, or the pipeline's folder that holds it.
    dtype: of parameters and computing, "float32" or "bfloat16"; None = float32.
    mesh: whose devices each hold a copy; None = one device.

  Raises:
    FileNotFoundError: if no autoencoder is there.
    ValueError: if it is of another kind or its files are broken, listing all
      tensors that are missing, unexpected or misshaped.
  """
  weights = open_vae(folder)
  cfg = dataclasses.replace(weights.cfg, dtype=dtype or "float32")
  params = place(weights.read, boxed_shapes(cfg), dtype_of(cfg.dtype), mesh)
  return Autoencoder(cfg, params)


def save_vae(
  autoencoder: Autoencoder,
  folder: str | os.PathLike,
  dtype: str = "float32",
  overwrite: bool = False,
) -> None:
  """Writes a folder that diffusers' `AutoencoderKL.from_pretrained` loads.

  Args:
    autoencoder: to write.
    folder: that shall appear, whole or not at all.
    dtype: of the file, "float32", "bfloat16" or "float16".
    overwrite: whether weights may be there.

  Raises:
    ValueError: if parameters are not those of the network, or too large for
      the type.
    FileExistsError: if something is there and `overwrite` is not set.
    OSError: if the disk has no room.
  """
  folder, kind = pathlib.Path(folder), dtype_of(dtype)
  check_destination(folder)
  cfg, flat = autoencoder.cfg, traverse_util.flatten_dict(autoencoder.params)
  check(
    {"/".join(path): shape for path, shape in _our_shapes(cfg).items()},
    {"/".join(path): x.shape for path, x in flat.items()},
  )
  shapes = _their_shapes(cfg)
  nbytes = kind.itemsize * sum(map(math.prod, shapes.values()))
  with destination.new(folder, nbytes, overwrite) as new:
    new.mkdir()
    whole = new / f"{DIFFUSERS}.safetensors"
    with safetensors.Writer(whole, shapes, kind) as file:
      for path, ((key,), layout) in vae_names(cfg).items():
        array = np.asarray(jax.device_get(flat[path])).transpose(
          TO_THEIRS[layout]
        )
        file.add(key, _as(array, kind, key))
    (new / CONFIG).write_text(json.dumps(config_json(cfg), indent=2) + "\n")


def _as(array: np.ndarray, dtype: np.dtype, key: str) -> np.ndarray:
  with np.errstate(over="ignore"):
    cast = array.astype(dtype)
  if dtype == np.float16 and not np.isfinite(cast).all():
    raise ValueError(
      f"{key} holds numbers that float16 cannot; use bfloat16 or float32"
    )
  return cast


def _our_shapes(cfg: VaeConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
  flat = traverse_util.flatten_dict(nn.unbox(boxed_shapes(cfg)))
  return {path: x.shape for path, x in flat.items()}


def _their_shapes(cfg: VaeConfig) -> dict[str, tuple[int, ...]]:
  ours, shapes = _our_shapes(cfg), {}
  for path, ((key,), kind) in vae_names(cfg).items():
    shapes[key] = tuple(ours[path][axis] for axis in TO_THEIRS[kind])
  return shapes
