"""Language models in Hugging Face folders: config.json and safetensors.

Read to be text encoders (`encoders.language`): a folder of transformers'
`save_pretrained`, or the `text_encoder/` of a diffusers pipeline, in one file
or in shards with an index. Tensors are read one at a time and go where they
belong; what a hidden state does not need is not read.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.encoders.language import LanguageConfig, boxed_shapes
from lumina_jax.interop import safetensors
from lumina_jax.interop.comparison import check
from lumina_jax.interop.language_config import language_config
from lumina_jax.interop.names import Name, Rows, Table
from lumina_jax.interop.source import CONFIG, read_json
from lumina_jax.interop.tensor import Tensor, dtype_of
from lumina_jax.parallel.placement import place

Path = tuple[str, ...]

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PREFIX = "model."  # Of keys, where the file is of a model with a head.
# In files, but nothing that is learnt, or nothing that an encoder uses.
IGNORED = r"lm_head\.weight|.*rotary_emb\.inv_freq"


@dataclasses.dataclass(frozen=True)
class LanguageWeights:
  """A language model on a disk, checked and ready to be loaded.

  Attributes:
    cfg: the model.
  """

  cfg: LanguageConfig
  _table: Table
  _tensors: Mapping[str, Tensor]

  def load(self, mesh: Mesh | None = None) -> dict[str, Any]:
    """Its parameters on the devices, read one at a time.

    Args:
      mesh: where the rules of `parallel.mesh` put them; None = one device.

    Raises:
      ValueError: if the mesh does not fit, or a file broke meanwhile.
    """
    boxed = boxed_shapes(self.cfg)
    ours = _shapes(boxed)

    def read(path: Path, numbers: np.dtype) -> np.ndarray:
      return _read(self._table[path], ours[path], self._tensors, numbers)

    return place(read, boxed, dtype_of(self.cfg.dtype), mesh)


def load_language(
  folder: str | os.PathLike,
  hidden: str,
  dtype: str = "bfloat16",
  mesh: Mesh | None = None,
) -> tuple[LanguageConfig, dict[str, Any]]:
  """Loads a language model; arguments and errors are of `open_language`.

  Args:
    folder: of the model.
    hidden: which hidden state it gives.
    dtype: of parameters and activations.
    mesh: where the rules of `parallel.mesh` put them; None = one device.

  Returns:
    The model, and its parameters on the devices.
  """
  weights = open_language(folder, hidden, dtype)
  return weights.cfg, weights.load(mesh)


def open_language(
  folder: str | os.PathLike, hidden: str, dtype: str = "bfloat16"
) -> LanguageWeights:
  """Finds a language model and checks every name and shape, without reading.

  Args:
    folder: with config.json and safetensors, or a diffusers pipeline with such
      a folder as its text_encoder/.
    hidden: "last" or "penultimate"; see `LanguageConfig`.
    dtype: "float32", "bfloat16" or "float16", of parameters and activations.

  Raises:
    FileNotFoundError: if the folder or a file is not there, or there are no
      safetensors in it.
    ValueError: if a file is broken, the model is none of FAMILIES, its tensors
      are not those that config.json announces, or the mesh does not fit.
  """
  folder = _folder(pathlib.Path(folder).expanduser())
  dtype_of(dtype)  # Or it is refused.
  try:
    cfg = language_config(read_json(folder / CONFIG), hidden, dtype)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  tensors = _tensors(folder)
  table, ours = language_names(cfg), _shapes(boxed_shapes(cfg))
  try:
    check(_their_shapes(cfg, table, ours), _found(cfg, tensors))
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  return LanguageWeights(cfg, table, tensors)


def _shapes(boxed: Any) -> dict[Path, tuple[int, ...]]:
  flat = traverse_util.flatten_dict(nn.unbox(boxed))
  return {path: x.shape for path, x in flat.items()}


def language_names(cfg: LanguageConfig) -> Table:
  """Our path -> their key without `model.`, of all that is loaded."""
  rows = Rows()
  rows.add("embed", "embed_tokens.weight", kind="table")
  if cfg.hidden == "last":
    rows.add("final_norm/scale", "norm.weight")
  block = Rows("blocks/", "layers.{i}.")
  for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
    block.matrix(f"attention/{ours}", f"self_attn.{theirs}_proj")
  block.matrix("attention/out", "self_attn.o_proj", kind="matrix_from_heads")
  for part in ("gate", "up", "down"):
    block.matrix(f"feed_forward/{part}", f"mlp.{part}_proj")
  if cfg.qk_norm:
    for ours, theirs in (("query", "q"), ("key", "k")):
      block.add(
        f"attention/{ours}_norm/scale", f"self_attn.{theirs}_norm.weight"
      )
  norms = {"attention_norm": "input", "feed_forward_norm": "post_attention"}
  if cfg.post_norms:  # Gemma-2's names say where a norm stands.
    norms = {
      "attention_norm": "input",
      "attention_post_norm": "post_attention",
      "feed_forward_norm": "pre_feedforward",
      "feed_forward_post_norm": "post_feedforward",
    }
  for ours, theirs in norms.items():
    block.add(f"{ours}/scale", f"{theirs}_layernorm.weight")
  return rows.table | block.table


def _keys(name: Name, layers: int) -> list[str]:
  (key,) = name.keys
  return [key.format(i=i) for i in range(layers)] if "{i}" in key else [key]


def _their_shapes(
  cfg: LanguageConfig, table: Table, ours: Mapping[Path, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
  """Keys and shapes of all that is loaded."""
  shapes = {}
  for path, name in table.items():
    stacked = "{i}" in name.keys[0]
    shape = ours[path][stacked:]
    if name.kind == "matrix":
      shape = (math.prod(shape[1:]), shape[0])
    elif name.kind == "matrix_from_heads":
      shape = (shape[-1], math.prod(shape[:-1]))
    shapes |= dict.fromkeys(_keys(name, cfg.layers), shape)
  return shapes


def _found(
  cfg: LanguageConfig, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
  """Keys and shapes of what the files hold and the encoder may need."""
  ignored = IGNORED
  if cfg.hidden == "penultimate":
    ignored += rf"|norm\.weight|layers\.{cfg.depth - 1}\..*"
  return {
    key: tensor.shape
    for key, tensor in tensors.items()
    if not re.fullmatch(ignored, key)
  }


def _read(
  name: Name,
  shape: tuple[int, ...],
  tensors: Mapping[str, Tensor],
  dtype: np.dtype,
) -> np.ndarray:
  """One of our arrays; of theirs no more than one is held beside it."""
  out = np.empty(shape, dtype)
  stacked = "{i}" in name.keys[0]
  for i, key in enumerate(_keys(name, shape[0])):
    theirs = tensors[key].read()
    if name.kind.startswith("matrix"):
      theirs = theirs.T  # (out, in) -> (in, out)
    part = out[i] if stacked else out
    part.reshape(theirs.shape)[...] = theirs  # A view, converted on the way.
  return out


def _folder(path: pathlib.Path) -> pathlib.Path:
  if (path / "text_encoder" / CONFIG).exists():
    return path / "text_encoder"
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; looked for a folder with {CONFIG} and {WHOLE}, "
      "or one with such a folder as its text_encoder/"
    )
  return path


def _tensors(folder: pathlib.Path) -> dict[str, Tensor]:
  """Tensors of one file or of several, by key without `model.`."""
  tensors: dict[str, Tensor] = {}
  for path in _files(folder):
    tensors |= safetensors.read(path)
  return {key.removeprefix(PREFIX): x for key, x in tensors.items()}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / WHOLE).exists():
    return [folder / WHOLE]
  index = folder / INDEX
  if not index.exists():
    there = ", ".join(sorted(f.name for f in folder.iterdir())[:8])
    raise FileNotFoundError(
      f"{folder} has neither {WHOLE} nor {INDEX}; there is {there}. Save the "
      "model as safetensors: save_pretrained(..., safe_serialization=True), "
      "no variant"
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
      f"{folder} lacks {', '.join(missing)}, which {INDEX} names"
    )
  return [folder / name for name in names]
