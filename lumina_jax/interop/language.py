"""Loads language models from Hugging Face folders as text encoders.

Reads a folder of transformers' `save_pretrained`, or the `text_encoder/` of a
diffusers pipeline: config.json, and one safetensors file or shards with an
index. Tensors are read one at a time and placed on the devices. Tensors that
the hidden state does not depend on are not read.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from lumina_jax.encoders.language import LanguageConfig, boxed_shapes
from lumina_jax.files.json_file import read_json
from lumina_jax.interop.hugging_face import CONFIG, TRANSFORMERS, read_tensors
from lumina_jax.interop.language_config import language_config
from lumina_jax.interop.layout import Layout, Path
from lumina_jax.interop.names import NameTable, TableBuilder
from lumina_jax.interop.shapes import Shapes, check_shapes
from lumina_jax.interop.tensor import Tensor, dtype_of
from lumina_jax.parallel.placement import place

PREFIX = "model."  # Starts the keys of a model that was saved with a head.
# Keys of tensors that are not trained, or that an encoder does not use.
IGNORED = r"lm_head\.weight|.*rotary_emb\.inv_freq"


@dataclasses.dataclass(frozen=True)
class LanguageWeights:
  """A language model on disk, checked and not yet loaded.

  Attributes:
    cfg: config of the model.
    read: reads one parameter by its path and dtype.
  """

  cfg: LanguageConfig
  read: Callable[[Path, np.dtype], np.ndarray]

  def load(self, mesh: Mesh | None = None) -> dict[str, Any]:
    """Loads the parameters onto the devices, one at a time.

    Args:
      mesh: devices, by the sharding rules of `parallel.mesh`; None uses one.

    Raises:
      ValueError: if the mesh does not fit, or a file cannot be read.
    """
    return place(
      self.read, boxed_shapes(self.cfg), dtype_of(self.cfg.dtype), mesh
    )


def load_language(
  folder: str | os.PathLike,
  hidden: str,
  dtype: str = "bfloat16",
  mesh: Mesh | None = None,
) -> tuple[LanguageConfig, dict[str, Any]]:
  """Loads a language model; arguments and errors are those of `open_language`.

  Args:
    folder: folder of the model.
    hidden: the hidden state to return.
    dtype: dtype of parameters and activations.
    mesh: devices, by the sharding rules of `parallel.mesh`; None uses one.

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
    folder: a folder with config.json and safetensors, or a diffusers pipeline
      with such a text_encoder/.
    hidden: "last" or "penultimate"; see `LanguageConfig`.
    dtype: dtype of parameters and activations: "float32", "bfloat16" or
      "float16".

  Raises:
    FileNotFoundError: if the folder or a file is missing, or it holds no
      safetensors.
    ValueError: if a file is broken, the family is not supported, or the tensors
      do not fit config.json.
  """
  folder = _folder(pathlib.Path(folder).expanduser())
  dtype_of(dtype)  # Checks the name.
  try:
    cfg = language_config(read_json(folder / CONFIG), hidden, dtype)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  # Without the prefix that only models with a head have.
  tensors = {
    key.removeprefix(PREFIX): tensor
    for key, tensor in read_tensors(folder, TRANSFORMERS).items()
  }
  flat = traverse_util.flatten_dict(nn.unbox(boxed_shapes(cfg)))
  ours = {path: x.shape for path, x in flat.items()}
  layout = Layout(language_names(cfg), ours, {"{i}": cfg.layers})
  try:
    check_shapes(layout.shapes(), _used_shapes(cfg, tensors))
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error

  def read(path: Path, dtype: np.dtype) -> np.ndarray:
    return layout.read(path, lambda key: tensors[key].read(), dtype)

  return LanguageWeights(cfg, read)


def language_names(cfg: LanguageConfig) -> NameTable:
  """The name table of all loaded parameters; keys lack the prefix `model.`."""
  builder = TableBuilder()
  builder.add("embed", "embed_tokens.weight", kind="table")
  if cfg.hidden == "last":
    builder.add("final_norm/scale", "norm.weight")
  block = TableBuilder("blocks/", "layers.{i}.")
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
  if cfg.post_norms:  # Gemma-2 has norms before and after each sublayer.
    norms = {
      "attention_norm": "input",
      "attention_post_norm": "post_attention",
      "feed_forward_norm": "pre_feedforward",
      "feed_forward_post_norm": "post_feedforward",
    }
  for ours, theirs in norms.items():
    block.add(f"{ours}/scale", f"{theirs}_layernorm.weight")
  return builder.table | block.table


def _used_shapes(cfg: LanguageConfig, tensors: Mapping[str, Tensor]) -> Shapes:
  """Shapes of the tensors in the files, without those that are ignored."""
  ignored = IGNORED
  if cfg.hidden == "penultimate":
    ignored += rf"|norm\.weight|layers\.{cfg.depth - 1}\..*"
  return {
    key: tensor.shape
    for key, tensor in tensors.items()
    if not re.fullmatch(ignored, key)
  }


def _folder(path: pathlib.Path) -> pathlib.Path:
  if (path / "text_encoder" / CONFIG).exists():
    return path / "text_encoder"
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected a folder with {CONFIG} and "
      f"{TRANSFORMERS}.safetensors, or one with such a text_encoder/"
    )
  return path
