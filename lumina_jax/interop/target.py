"""Writing weights as PyTorch's programs expect them, one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import place, pth, safetensors, unpickler
from lumina_jax.interop.constructors import model_args
from lumina_jax.interop.diffusers import config_json, diffusers_names
from lumina_jax.interop.layout import Layout
from lumina_jax.interop.lumina import lumina_names
from lumina_jax.interop.source import CONFIG, DIFFUSERS, MODEL_ARGS
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import Weights, read_as

# Hugging Face's hub and loaders like files of no more than this.
SHARD_BYTES = 5_000_000_000
SINGLE_FILE = (".safetensors", ".pth")
LAYOUTS = ("lumina", "diffusers")
Progress = Callable[[int, int], None]  # (tensors of ours done, in all)


def write(
  weights: Weights,
  path: str | os.PathLike,
  layout: str,
  dtype: str = "float32",
  suffix: str = ".safetensors",
  overwrite: bool = False,
  progress: Progress = lambda done, of: None,
) -> None:
  """Writes weights in a PyTorch layout; see `pytorch.save_pytorch`.

  Raises:
    ValueError: for an unknown layout, or a file's name where it is a folder.
  """
  path, kind = pathlib.Path(path), dtype_of(dtype)
  check_destination(path)
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r}: use one of {', '.join(LAYOUTS)}")
  if layout == "diffusers":
    if path.suffix in SINGLE_FILE:
      raise ValueError(f"{path}: diffusers loads folders; name one")
    write_diffusers(weights, path, kind, overwrite, progress)
  else:
    write_lumina(weights, path, kind, suffix, overwrite, progress)


def check_destination(path: pathlib.Path) -> None:
  """Refuses names under which a folder or a file would surprise.

  Raises:
    ValueError: naming what to write instead.
  """
  if path.suffix in (".pt", ".ckpt", ".bin"):
    raise ValueError(
      f"{path} looks like a file: files end in {' or '.join(SINGLE_FILE)}"
    )
  if "://" in str(path) or str(path).startswith("gs:"):
    raise ValueError(f"{path}: buckets are not written to; name a local path")


def write_lumina(
  weights: Weights,
  path: pathlib.Path,
  dtype: np.dtype,
  suffix: str,
  overwrite: bool,
  progress: Progress,
) -> None:
  """Writes a folder of the original code, or a single file.

  One file whatever its size: in the original's names a second file is a second
  tensor-parallel rank. Raw and averaged weights are the same here, so both of
  its names lead to the file, by a hard link. A .safetensors file says itself
  what model_args.pth would. Of audio it is the bare network, which the original
  keeps within a larger checkpoint.

  Args:
    weights: to write.
    path: of the folder, or of a file if it ends in .safetensors or .pth.
    dtype: of all tensors.
    suffix: .safetensors or .pth, of the file in a folder.
    overwrite: whether something may be there.
    progress: told after each of our parameters.
  """
  layout = _lumina_layout(weights.cfg)
  nbytes = _nbytes(layout, dtype)
  args = model_args(weights.cfg, dict(weights.args))
  args = unpickler.as_dict("model_args", args)  # Plain, or refused here.
  with place.new(path, nbytes, overwrite) as new:
    if path.suffix in SINGLE_FILE:
      # Of the kind that was named, wherever a link of that name leads.
      _write_file(weights, layout, new, path.suffix, dtype, args, progress)
      return
    new.mkdir()
    whole = new / f"consolidated.00-of-01{suffix}"
    _write_file(weights, layout, whole, suffix, dtype, args, progress)
    with contextlib.suppress(OSError):  # A disk without hard links.
      os.link(whole, new / f"consolidated_ema.00-of-01{suffix}")
    pth.write_namespace(new / MODEL_ARGS, args)


def write_diffusers(
  weights: Weights,
  path: pathlib.Path,
  dtype: np.dtype,
  overwrite: bool,
  progress: Progress,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes what `LuminaNextDiT2DModel.from_pretrained` loads.

  Files of at most `shard_bytes`, with an index if there are several.

  Raises:
    ValueError: if diffusers has no class for the network.
  """
  layout = Layout(weights.cfg, diffusers_names(weights.cfg))
  shards = _shards(layout, dtype, shard_bytes)
  names = _names(len(shards))
  with place.new(path, _nbytes(layout, dtype), overwrite) as new:
    new.mkdir()
    with contextlib.ExitStack() as stack:
      writers = {}
      for name, shapes in zip(names, shards, strict=True):
        writer = safetensors.Writer(new / name, shapes, dtype)
        stack.enter_context(writer)
        writers |= dict.fromkeys(shapes, writer)
      _copy(weights, layout, lambda k, x: writers[k].add(k, x), dtype, progress)
    if len(shards) > 1:
      _json(
        new / f"{DIFFUSERS}.safetensors.index.json",
        {
          "metadata": {"total_size": _nbytes(layout, dtype)},
          "weight_map": {
            key: name
            for name, shapes in zip(names, shards, strict=True)
            for key in shapes
          },
        },
      )
    _json(new / CONFIG, config_json(weights.cfg))


def _lumina_layout(cfg: ModelConfig) -> Layout:
  # The audio code never had a sigma.
  return Layout(cfg, lumina_names(cfg), sigma=len(cfg.patch) > 1)


def _copy(
  weights: Weights,
  layout: Layout,
  add: Callable[[str, np.ndarray], None],
  dtype: np.dtype,
  progress: Progress,
) -> None:
  def copy(path):  # A call of its own: what it read is gone when it ends.
    for key, array in layout.write(path, read_as(weights, path, dtype)):
      add(key, array)

  for number, path in enumerate(layout.table, 1):
    copy(path)
    progress(number, len(layout.table))


def _write_file(weights, layout, path, suffix, dtype, args, progress) -> None:
  if suffix == ".pth":
    with pth.Writer(path) as file:
      _copy(weights, layout, file.add, dtype, progress)
  else:
    said = {MODEL_ARGS: json.dumps(args, default=list)}
    with safetensors.Writer(path, layout.shapes(), dtype, said) as file:
      _copy(weights, layout, file.add, dtype, progress)


def _nbytes(layout: Layout, dtype: np.dtype) -> int:
  sizes = map(math.prod, layout.shapes().values())
  return sum(sizes) * dtype.itemsize


def _shards(
  layout: Layout, dtype: np.dtype, most: int
) -> list[dict[str, tuple[int, ...]]]:
  """Shapes dealt to files in order, each filled up to `most` bytes."""
  shards, used = [{}], 0
  for key, shape in layout.shapes().items():
    size = math.prod(shape) * dtype.itemsize
    if shards[-1] and used + size > most:
      shards.append({})
      used = 0
    shards[-1][key] = shape
    used += size
  return shards


def _names(count: int) -> list[str]:
  if count == 1:
    return [f"{DIFFUSERS}.safetensors"]
  return [
    f"{DIFFUSERS}-{number:05d}-of-{count:05d}.safetensors"
    for number in range(1, count + 1)
  ]


def _json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + "\n")
