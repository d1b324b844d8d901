"""Pipelines in folders: our export, diffusers' and the original's.

options    options of from_pretrained
hub        local folders and repositories on the hub
export     our own folders, such as the digits that ship with the package
diffusers  folders with a model_index.json
original   folders with consolidated weights, and the encoders that they name
encoders   the language model and the codec
codecs     codecs by class
backbone   weights of any format, on the devices
defaults   sampling options and sizes of published networks
data_encoders  the same encoders for training data
"""

import dataclasses
import os
import pathlib
from typing import Any

from lumina_jax.files.suggest import check_name
from lumina_jax.interop import destination
from lumina_jax.model.offload import Offloadable
from lumina_jax.pretrained import diffusers, export, hub, original
from lumina_jax.pretrained.options import check_folder, parse
from lumina_jax.sampling.components import Components

LAYOUTS = {"lumina_jax": export, "diffusers": diffusers}


def load(path: str | os.PathLike | None = None, **options: Any) -> Components:
  """Loads the components of a pipeline.

  Args:
    path: a folder, or "owner/name" on the hub; None = the digits that ship with
      the package.
    **options: fields of `Options`.

  Raises:
    FileNotFoundError: if something is missing; names the way out.
    ValueError: if a file is broken, components do not fit, or an option is
      unknown.
  """
  chosen = parse(options)
  check_folder(path, "path")
  if path is None:
    return export.load(export.SHIPPED, chosen)
  folder = hub.find(path, chosen.token, chosen.revision, chosen.ema)
  for layout in (diffusers, export, original):
    if layout.matches(folder):
      return layout.load(folder, chosen)
  content = ", ".join(sorted(f.name for f in folder.iterdir())[:8])
  raise FileNotFoundError(
    f"{folder} is not a pipeline; looked for model_index.json (diffusers), "
    f"{export.CONFIG} and {export.WEIGHTS} (ours), consolidated*.safetensors "
    f"or .pth (the original). It contains: {content or 'nothing'}"
  )


def save(
  components: Components,
  path: str | os.PathLike,
  layout: str,
  dtype: str,
  overwrite: bool,
) -> Components:
  """Saves components; see `LuminaPipeline.save_pretrained`.

  Returns:
    The components, with weights in memory if their files were replaced.
  """
  check_name("layout", layout, LAYOUTS)
  folder = pathlib.Path(path).expanduser().absolute()
  destination.check_name(pathlib.Path(path))
  full = folder.is_dir() and any(folder.iterdir())
  if full and not (diffusers.matches(folder) or export.is_ours(folder)):
    raise FileExistsError(
      f"{folder} is not a pipeline and is not overwritten; pass another folder"
    )
  params = components.params  # The files that hold them may be replaced.
  LAYOUTS[layout].save(components, folder, dtype, overwrite)
  if folder != components.files.get("licence"):
    return components
  weights = Offloadable.pinned(params)
  return dataclasses.replace(components, weights=weights)
