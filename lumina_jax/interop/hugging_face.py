"""Files of a Hugging Face folder: config.json and safetensors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from lumina_jax.files.json_file import read_json
from lumina_jax.interop import safetensors
from lumina_jax.interop.tensor import Tensor

CONFIG = "config.json"
# Stems of the safetensors files that the two libraries write.
TRANSFORMERS = "model"
DIFFUSERS = "diffusion_pytorch_model"


def value_of(values: Mapping[str, Any], name: str) -> Any:
  """A value of config.json.

  Raises:
    ValueError: if it is missing.
  """
  if name not in values:
    raise ValueError(f"config.json lacks {name!r}")
  return values[name]


def read_tensors(folder: pathlib.Path, stem: str) -> dict[str, Tensor]:
  """Lists the tensors of a folder by key, without reading them.

  Args:
    folder: holds `<stem>.safetensors`, or several files and
      `<stem>.safetensors.index.json`.
    stem: `TRANSFORMERS` or `DIFFUSERS`.

  Raises:
    FileNotFoundError: naming a file that is missing.
    ValueError: if a file is broken.
  """
  tensors: dict[str, Tensor] = {}
  for path in find_files(folder, stem):
    tensors |= safetensors.read(path)
  return tensors


def find_files(folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
  """Files that hold the tensors of a folder; see `read_tensors`."""
  whole = folder / f"{stem}.safetensors"
  index = folder / f"{stem}.safetensors.index.json"
  # Given both, transformers reads the whole file and diffusers the index.
  if whole.exists() and (stem == TRANSFORMERS or not index.exists()):
    return [whole]
  if not index.exists():
    names = ", ".join(sorted(f.name for f in folder.iterdir())[:8])
    raise FileNotFoundError(
      f"{folder} has neither {whole.name} nor {index.name}, only {names}. Save "
      "the model as safetensors: save_pretrained(..., safe_serialization=True),"
      " no variant"
    )
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(name, str) and name == os.path.basename(name)
    for name in weight_map.values()
  ):
    raise ValueError(
      f"{index} cannot be read: it has no weight_map to files beside it"
    )
  names = sorted(set(weight_map.values()))
  if missing := [name for name in names if not (folder / name).exists()]:
    raise FileNotFoundError(
      f"{folder} lacks {', '.join(missing)}, which {index.name} names"
    )
  return [folder / name for name in names]
