"""Converts weights: python -m lumina_jax.convert SOURCE DESTINATION

SOURCE is from PyTorch (a folder of the original code, a diffusers folder, a
.safetensors or .pth file) or ours (a workdir, an exported or a converted
folder). The command makes DESTINATION. Examples:

  lumina convert Lumina-Next-SFT weights               from PyTorch to ours
  lumina convert runs/mine out --layout=diffusers      from a run to PyTorch
  lumina convert old.pth new.safetensors               from file to file
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from lumina_jax.backbone import shapes
from lumina_jax.commands import start
from lumina_jax.interop.convert import LAYOUTS, choose_layout, convert
from lumina_jax.interop.tensor import DTYPES
from lumina_jax.parallel import processes


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
    model_args=parse_model_args(args.model_arg),
    suffix=f".{args.format}",
    overwrite=args.force,
  )
  count = sum(x.size for x in jax.tree.leaves(shapes(weights.cfg)))
  if (source / "model_index.json").exists():
    print(
      "converted the network alone; save_pretrained of LuminaPipeline also "
      "keeps its language model and autoencoder"
    )
  kind = {True: "EMA ", False: "raw ", None: ""}[weights.ema]
  print(
    f"{count / 1e6:,.1f} M {kind}parameters, {args.dtype}, in {destination} "
    f"(peak memory {processes.peak_memory() / 1e9:.2f} GB)"
  )


def parse_model_args(words: Sequence[str]) -> dict[str, Any]:
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


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_enum(
    "layout",
    None,
    LAYOUTS,
    "Layout to write; default: ours from PyTorch, the original's for a file.",
  )
  flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of all parameters.")
  flags.DEFINE_bool(
    "ema", None, "EMA weights or raw ones; default: EMA if there are both."
  )
  flags.DEFINE_multi_string(
    "model_arg",
    [],
    "Argument of the original's constructor that weights do not reveal, e.g. "
    "n_heads=32; may be repeated.",
  )
  flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "pth"],
    "Of the file in a folder of the original layout.",
  )
  flags.DEFINE_bool("force", False, "Replace an existing destination.")
  start.run(main)


if __name__ == "__main__":
  run()
