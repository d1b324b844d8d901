"""Conversion of weights from any layout to any other."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lumina_jax.backbone import shapes
from lumina_jax.files.progress import Progress
from lumina_jax.interop import destination as destinations
from lumina_jax.interop import licences, native, pytorch_writer
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import Weights

NATIVE = "lumina_jax"
LAYOUTS = (NATIVE, *pytorch_writer.LAYOUTS)


def convert(
  source: pathlib.Path,
  destination: pathlib.Path,
  layout: str,
  *,
  dtype: str = "float32",
  ema: bool | None = None,
  model_args: Mapping[str, Any] | None = None,
  suffix: str = ".safetensors",
  overwrite: bool = False,
) -> Weights:
  """Copies weights one parameter at a time, with a progress bar.

  Memory holds about one of our parameters, which stacks all blocks, and one
  tensor of PyTorch.

  Args:
    source: file or folder.
    destination: file or folder to make.
    layout: one of `LAYOUTS`.
    dtype: "float32", "bfloat16" or "float16".
    ema: EMA weights or raw ones; None = EMA if there are both.
    model_args: see `interop.load_pytorch`.
    suffix: .safetensors or .pth, for a folder of the original layout.
    overwrite: whether the destination may exist.

  Returns:
    The weights that were converted.

  Raises:
    FileNotFoundError, FileExistsError, OSError, ValueError: as `load_pytorch`
      and `save_pytorch` do.
    ValueError: if the weights do not predict a velocity of the linear path,
      since weights alone cannot say so.
  """
  folder = pathlib.Path(source).expanduser()
  weights = open_weights(source, ema, model_args)
  if native.is_native(folder):
    _check_objective(folder)
  total = len(jax.tree.leaves(shapes(weights.cfg)))
  with Progress("converting", total, unit="parameters", note="") as bar:
    if layout == NATIVE:
      kind = dtype_of(dtype)
      native.write_native(weights, destination, kind, overwrite, bar.show)
    else:
      pytorch_writer.write(
        weights, destination, layout, dtype, suffix, overwrite, bar.show
      )
  if destination.is_dir():
    licences.replace(source, destination)
  return weights


def choose_layout(
  layout: str | None,
  source: pathlib.Path,
  destination: pathlib.Path,
  file_format: str = "safetensors",
) -> str:
  """The requested layout, or the only one that makes sense.

  Raises:
    ValueError: if several make sense, or the request contradicts the
      destination.
  """
  if destination.suffix in destinations.SINGLE_FILE:
    if layout not in (None, "lumina"):
      raise ValueError(
        f"--layout={layout} writes a folder, but {destination} names a file"
      )
    return "lumina"
  if file_format == "pth" and layout != "lumina":
    raise ValueError("--format=pth needs --layout=lumina")
  if layout is None and native.is_native(source):
    raise ValueError(
      f"{source} is in our own layout: choose --layout=lumina or "
      "--layout=diffusers"
    )
  return layout or NATIVE


def _check_objective(source: pathlib.Path) -> None:
  objective = native.read_objective(source)
  if not objective.published:
    raise ValueError(
      f"{source} was trained with {objective.summary}; weights alone cannot "
      "say so and would be read as a velocity on the path 'linear'. "
      "save_pretrained of LuminaPipeline keeps the objective, in our own layout"
    )
