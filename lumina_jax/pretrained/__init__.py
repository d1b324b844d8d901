"""Pipelines in folders: our export, diffusers' and the original's.

options    what a caller may choose
hub        a folder, or a repository that is fetched into one
export     our own folders, the digits that ship with us among them
diffusers  folders with a model_index.json
original   folders with consolidated weights, and the encoders they name
encoders   the language model and the autoencoder of any of them
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lumina_jax.pipeline import LuminaPipeline

LAYOUTS = ("lumina_jax", "diffusers")


def load(
  path: str | os.PathLike | None = None, **options: Any
) -> LuminaPipeline:
  """Loads a pipeline; see `options.Options` for what may be chosen.

  Args:
    path: a folder, or "owner/name" on the hub; None = the digits.
    **options: of `Options`.

  Raises:
    FileNotFoundError: if something is missing; says what to do.
    ValueError: if a file is broken, parts do not fit, or an option is unknown.
  """
  from lumina_jax.pretrained import diffusers, export, hub, original
  from lumina_jax.pretrained.options import parse

  chosen = parse(options)
  if path is None:
    return export.load(export.SHIPPED, chosen)
  folder = hub.find(path, chosen.token, chosen.revision, chosen.ema)
  for kind in (diffusers, export, original):
    if kind.is_one(folder):
      return kind.load(folder, chosen)
  there = ", ".join(sorted(f.name for f in folder.iterdir())[:8])
  raise FileNotFoundError(
    f"{folder} holds no pipeline; looked for model_index.json (diffusers), "
    f"{export.CONFIG} and {export.WEIGHTS} (ours), consolidated*.safetensors "
    f"or .pth (the original). There is: {there or 'nothing'}"
  )


def save(
  pipe: LuminaPipeline,
  path: str | os.PathLike,
  layout: str,
  dtype: str,
  overwrite: bool,
) -> None:
  """Saves a pipeline; see `LuminaPipeline.save_pretrained`."""
  from lumina_jax.interop.pytorch_writer import check_destination
  from lumina_jax.model.offload import Part
  from lumina_jax.pretrained import diffusers, export

  if layout not in LAYOUTS:
    raise ValueError(
      f"layout {layout!r}: use one of {', '.join(LAYOUTS)}. For the original "
      "code's, lumina_jax.save_pytorch"
    )
  folder = pathlib.Path(path).expanduser().absolute()
  check_destination(pathlib.Path(path))
  full = folder.is_dir() and any(folder.iterdir())
  if full and not (diffusers.is_one(folder) or export.is_ours(folder)):
    raise FileExistsError(
      f"{folder} holds no pipeline and is not overwritten; name another place"
    )
  module = diffusers if layout == "diffusers" else export
  params = pipe.params  # What is read later may be about to be replaced.
  module.save(pipe, folder, dtype, overwrite)
  if folder == pipe.files.get("licence"):
    pipe.part = Part.of(params)
