"""Writes weights in PyTorch's layouts, one tensor at a time."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np

from lumina_jax.files.json_file import write_json
from lumina_jax.files.suggest import check_name
from lumina_jax.interop import destination, pth, safetensors, unpickler
from lumina_jax.interop.diffusers import config_json, diffusers_names
from lumina_jax.interop.hugging_face import CONFIG, DIFFUSERS
from lumina_jax.interop.layout import Layout, backbone_layout
from lumina_jax.interop.lumina import MEDIA, lumina_names
from lumina_jax.interop.model_args import model_args
from lumina_jax.interop.pytorch_files import MODEL_ARGS
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import Weights, read_as

SHARD_BYTES = 5_000_000_000  # The size that diffusers uses too.
LAYOUTS = ("lumina", "diffusers")
OnProgress = Callable[[int], None]  # takes the number of parameters done


def write(
  weights: Weights,
  path: str | os.PathLike,
  layout: str,
  dtype: str = "float32",
  suffix: str = ".safetensors",
  overwrite: bool = False,
  on_progress: OnProgress = lambda done: None,
) -> None:
  """Writes weights in a PyTorch layout; see `pytorch.save_pytorch`.

  Raises:
    ValueError: for an unknown layout, or a file name where the layout is a
      folder.
  """
  path, kind = pathlib.Path(path), dtype_of(dtype)
  check_name("layout", layout, LAYOUTS)
  if layout == "diffusers":
    if path.suffix in destination.SINGLE_FILE:
      raise ValueError(f"{path}: diffusers loads folders; name a folder")
    write_diffusers(weights, path, kind, overwrite, on_progress)
  else:
    write_lumina(weights, path, kind, suffix, overwrite, on_progress)


def write_lumina(
  weights: Weights,
  path: pathlib.Path,
  dtype: np.dtype,
  suffix: str,
  overwrite: bool,
  on_progress: OnProgress,
) -> None:
  """Writes a folder of the original code, or a single file.

  A folder holds one file of any size, since in the original's naming a second
  file is a second tensor-parallel rank. The names of raw and of EMA weights
  are hard links to the same file. A .safetensors file stores model_args in its
  metadata too. For audio this is the bare network, which the original stores
  within a larger checkpoint.

  Args:
    weights: the weights to write.
    path: a folder, or a file that ends in .safetensors or .pth.
    dtype: dtype of all tensors.
    suffix: .safetensors or .pth, for the file in a folder.
    overwrite: whether to replace existing weights.
    on_progress: called after each of our parameters.

  Raises:
    ValueError: if the original has no such network or medium.
  """
  cfg, medium = weights.cfg, weights.medium
  table = lumina_names(cfg, medium)
  layout = backbone_layout(cfg, table, MEDIA[medium].sigma)
  args = model_args(cfg, medium, weights.args)
  args = unpickler.as_dict("model_args", args)  # Refuses other than plain ones.

  def write_file(new: pathlib.Path, suffix: str) -> None:
    if suffix == ".pth":
      file = pth.Writer(new)
    else:
      metadata = {MODEL_ARGS: json.dumps(args, default=list)}
      file = safetensors.Writer(new, layout.shapes(), dtype, metadata)
    with file:
      _copy(weights, layout, file.add, dtype, on_progress)

  with destination.staged(path, _nbytes(layout, dtype), overwrite) as new:
    if path.suffix in destination.SINGLE_FILE:
      # By the suffix that was passed, even if a link leads to another.
      write_file(new, path.suffix)
      return
    new.mkdir()
    whole = new / f"consolidated.00-of-01{suffix}"
    write_file(whole, suffix)
    with contextlib.suppress(OSError):  # A disk without hard links.
      os.link(whole, new / f"consolidated_ema.00-of-01{suffix}")
    pth.write_namespace(new / MODEL_ARGS, args)


def write_diffusers(
  weights: Weights,
  path: pathlib.Path,
  dtype: np.dtype,
  overwrite: bool,
  on_progress: OnProgress = lambda done: None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a folder that `LuminaNextDiT2DModel.from_pretrained` loads.

  Files have at most `shard_bytes`; several files have an index.

  Raises:
    ValueError: if diffusers has no class for the network.
  """
  table = diffusers_names(weights.cfg, weights.medium)
  layout = backbone_layout(weights.cfg, table, sigma=True)
  shards = _split_shapes(layout, dtype, shard_bytes)
  names = _file_names(len(shards))
  with destination.staged(path, _nbytes(layout, dtype), overwrite) as new:
    new.mkdir()
    with contextlib.ExitStack() as stack:
      writers = {}
      for name, shapes in zip(names, shards, strict=True):
        writer = safetensors.Writer(new / name, shapes, dtype)
        stack.enter_context(writer)
        writers |= dict.fromkeys(shapes, writer)
      _copy(
        weights, layout, lambda k, x: writers[k].add(k, x), dtype, on_progress
      )
    if len(shards) > 1:
      index = {
        "metadata": {"total_size": _nbytes(layout, dtype)},
        "weight_map": {
          key: name
          for name, shapes in zip(names, shards, strict=True)
          for key in shapes
        },
      }
      write_json(new / f"{DIFFUSERS}.safetensors.index.json", index)
    write_json(new / CONFIG, config_json(weights.cfg))


def _copy(
  weights: Weights,
  layout: Layout,
  add: Callable[[str, np.ndarray], None],
  dtype: np.dtype,
  on_progress: OnProgress,
) -> None:
  def copy(path):  # A function, so that its arrays are freed at the end.
    for key, array in layout.write(path, read_as(weights, path, dtype)):
      add(key, array)

  for number, path in enumerate(layout.table, 1):
    copy(path)
    on_progress(number)


def _nbytes(layout: Layout, dtype: np.dtype) -> int:
  sizes = map(math.prod, layout.shapes().values())
  return sum(sizes) * dtype.itemsize


def _split_shapes(
  layout: Layout, dtype: np.dtype, max_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
  """Splits the tensors into files of at most `max_bytes`, in order."""
  shards, used = [{}], 0
  for key, shape in layout.shapes().items():
    size = math.prod(shape) * dtype.itemsize
    if shards[-1] and used + size > max_bytes:
      shards.append({})
      used = 0
    shards[-1][key] = shape
    used += size
  return shards


def _file_names(count: int) -> list[str]:
  if count == 1:
    return [f"{DIFFUSERS}.safetensors"]
  return [
    f"{DIFFUSERS}-{number:05d}-of-{count:05d}.safetensors"
    for number in range(1, count + 1)
  ]
