"""Converts weights: python -m lumina_jax.convert SOURCE DESTINATION

SOURCE is what PyTorch saved (a folder of the original code, a diffusers folder,
a .safetensors or .pth file) or ours (a workdir, an exported or a converted
folder); DESTINATION is made. For example:

  lumina convert Lumina-Next-SFT weights               from PyTorch to ours
  lumina convert runs/mine out --layout=diffusers      from a run to PyTorch
  lumina convert old.pth new.safetensors               from file to file
"""

from __future__ import annotations

import json
import math
import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from lumina_jax.backbone import shapes
from lumina_jax.commands import start as entry_point
from lumina_jax.files.progress import Progress
from lumina_jax.interop import licences, native, pytorch_writer
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.tensor import DTYPES, dtype_of
from lumina_jax.interop.weights import Weights

OURS = "lumina_jax"
LAYOUTS = (OURS, *pytorch_writer.LAYOUTS)


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
  """Copies weights from one format to another, one parameter at a time.

  Memory holds about one parameter of ours, which stacks all blocks, and one
  tensor of theirs.

  Args:
    source: file or folder.
    destination: to be made.
    layout: one of `LAYOUTS`.
    dtype: "float32", "bfloat16" or "float16".
    ema: averaged weights or raw ones; None = averaged if there are both.
    model_args: see `interop.load_pytorch`.
    suffix: .safetensors or .pth, for a folder of the original layout.
    overwrite: whether the destination may exist.

  Returns:
    The weights that were converted.

  Raises:
    FileNotFoundError, FileExistsError, OSError, ValueError: as `load_pytorch`
      and `save_pytorch` do.
    ValueError: if the weights predict no velocity of the linear path, which is
      what whoever reads them without the rest of the source takes them for.
  """
  folder = pathlib.Path(source).expanduser()
  weights = open_weights(source, ema, model_args)
  if native.is_native(folder):
    _check_objective(folder)
  total = len(jax.tree.leaves(shapes(weights.cfg)))
  with Progress("converting", total, unit="parameters", note="") as bar:

    def progress(done, of):
      bar.show(done)

    if layout == OURS:
      kind = dtype_of(dtype)
      native.write_native(weights, destination, kind, overwrite, progress)
    else:
      pytorch_writer.write(
        weights, destination, layout, dtype, suffix, overwrite, progress
      )
  if destination.is_dir():
    licences.replace(source, destination)
  return weights


def _check_objective(source: pathlib.Path) -> None:
  objective = native.read_objective(source)
  if not objective.published:
    raise ValueError(
      f"{source} was trained with {objective.summary}; weights alone do not "
      "say so, and would be taken for a velocity on the path 'linear'. "
      "save_pretrained of LuminaPipeline keeps it, in our own layout"
    )


def choose_layout(
  layout: str | None,
  source: pathlib.Path,
  destination: pathlib.Path,
  format_: str = "safetensors",
) -> str:
  """The layout that was asked for, or the only one that makes sense.

  Raises:
    ValueError: if there are several.
  """
  if destination.suffix in pytorch_writer.SINGLE_FILE:
    if layout not in (None, "lumina"):
      raise ValueError(
        f"--layout={layout} makes a folder; {destination} is the name of a file"
      )
    return "lumina"
  if format_ == "pth" and layout != "lumina":
    raise ValueError("--format=pth is for --layout=lumina")
  if layout is None and native.is_native(source):
    raise ValueError(
      f"{source} is ours: name what it shall become, --layout=lumina or "
      "--layout=diffusers"
    )
  return layout or OURS


def parse_args(words: Sequence[str]) -> dict[str, Any]:
  """["n_heads=32", "model=NextDiT_2B_patch2"] -> their values.

  Raises:
    ValueError: if a word has no value.
  """
  args = {}
  for word in words:
    name, equals, value = word.partition("=")
    if not name or not equals:
      raise ValueError(f"--model_arg={word}: write --model_arg=n_heads=32")
    try:
      args[name] = json.loads(value)
    except json.JSONDecodeError:
      args[name] = value
  return args


def main(argv: list[str]) -> None:
  args = flags.FLAGS
  if len(argv) != 3:
    raise ValueError(
      f"expected SOURCE DESTINATION, got {argv[1:] or 'nothing'}; for example: "
      "lumina convert old.pth new.safetensors"
    )
  source, destination = (pathlib.Path(a).expanduser() for a in argv[1:])
  weights = convert(
    source,
    destination,
    choose_layout(args.layout, source, destination, args.format),
    dtype=args.dtype,
    ema=args.ema,
    model_args=parse_args(args.model_arg),
    suffix=f".{args.format}",
    overwrite=args.force,
  )
  count = sum(
    math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(weights.cfg))
  )
  if (source / "model_index.json").exists():
    print(
      "the network alone; save_pretrained of LuminaPipeline keeps its language "
      "model and autoencoder with it"
    )
  which = {True: "averaged ", False: "raw ", None: ""}[weights.ema]
  print(
    f"{count / 1e6:,.1f} M {which}parameters, {args.dtype}, in {destination} "
    f"(peak memory {peak_memory() / 1e9:.2f} GB)"
  )


def peak_memory() -> int:
  """Most bytes of memory that this process ever held."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # What rusage says on Linux counts the parent in.
    (line,) = (x for x in status.read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_enum(
    "layout",
    None,
    LAYOUTS,
    "What to make; by default ours from PyTorch, the original's for a file.",
  )
  flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of all numbers.")
  flags.DEFINE_bool(
    "ema", None, "Averaged weights, or raw ones; by default what there is."
  )
  flags.DEFINE_multi_string(
    "model_arg",
    [],
    "What weights do not tell of their network, in the words of the original's "
    "constructors, e.g. n_heads=32; may be repeated.",
  )
  flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "pth"],
    "Of the file in a folder of the original layout.",
  )
  flags.DEFINE_bool("force", False, "Replace a destination that exists.")
  entry_point.run(main)


if __name__ == "__main__":
  run()
