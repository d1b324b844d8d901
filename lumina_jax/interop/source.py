"""Where PyTorch weights lie: a folder or a file -> tensors and arguments."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.interop import pth, safetensors
from lumina_jax.interop.tensor import Tensor

SHARD = re.compile(
  r"consolidated(?P<ema>_ema)?\.(?P<part>\d+)-of-(?P<parts>\d+)"
  r"\.(?P<format>safetensors|pth)"
)
MODEL_ARGS = "model_args.pth"
CONFIG = "config.json"
DIFFUSERS = "diffusion_pytorch_model"
# The whole model of the audio code holds the network under this name.
LIGHTNING = "model.diffusion_model."
LOOKED_FOR = (
  "a .safetensors or .pth file; a folder of the original code "
  "(consolidated[_ema].00-of-01.safetensors or .pth); a diffusers folder, or "
  f"its transformer/ ({CONFIG} and {DIFFUSERS}.safetensors)"
)


class Source(NamedTuple):
  """Weights that were found.

  Attributes:
    layout: "lumina" or "diffusers".
    shards: tensors by key, a dict for each tensor-parallel shard.
    args: what the folder says of the network: model_args or config.json.
    ema: whether the weights are averaged; None = it does not say.
  """

  layout: str
  shards: list[dict[str, Tensor]]
  args: dict[str, Any]
  ema: bool | None


def find(path: pathlib.Path, ema: bool | None = None) -> Source:
  """Finds the weights at a path, without reading them.

  Args:
    path: a file or a folder.
    ema: averaged weights or raw ones; None = averaged if there are both.

  Raises:
    FileNotFoundError: if there is nothing, or not what was asked for.
    ValueError: if a file is broken, or holds no state dict.
  """
  path = path.expanduser()
  if path.is_file():
    return _single(path, ema)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist; looked for {LOOKED_FOR}")
  if (path / "transformer" / CONFIG).exists():
    path = path / "transformer"
  if any(path.glob(f"{DIFFUSERS}*")):
    _refuse_choice(path, ema)
    return _diffusers(path)
  files = [m for f in path.iterdir() if (m := SHARD.fullmatch(f.name))]
  if not files:
    there = ", ".join(sorted(f.name for f in path.iterdir())[:8])
    raise FileNotFoundError(
      f"no weights of a known layout in {path}; looked for {LOOKED_FOR}. "
      f"There is: {there or 'nothing'}"
    )
  chosen, ema = _choose(path, files, ema)
  shards = [_tensors(path / name) for name in chosen]
  args = {}
  if (path / MODEL_ARGS).exists():
    args = pth.read_namespace(path / MODEL_ARGS)
  return Source("lumina", shards, args, ema)


def _single(path: pathlib.Path, ema: bool | None) -> Source:
  part = SHARD.fullmatch(path.name)
  if part and int(part["parts"]) > 1:
    raise ValueError(
      f"{path} is one of {int(part['parts'])} shards; give the folder"
    )
  _refuse_choice(path, ema)
  tensors = _tensors(path)
  args = {}
  if path.suffix == ".safetensors":
    said = safetensors.metadata(path)
    if MODEL_ARGS in said:  # By ourselves.
      args = dict(json.loads(said[MODEL_ARGS]))
  inner = _inner(tensors)
  if inner:  # The whole audio model feeds its network whole steps of time.
    args = {"time_scale": 1000.0}
  return Source("lumina", [inner or tensors], args, None)


def _refuse_choice(path: pathlib.Path, ema: bool | None) -> None:
  if ema is not None:
    raise FileNotFoundError(
      f"{path} holds one set of weights and does not say which; ask for "
      "neither averaged nor raw ones"
    )


def _choose(
  path: pathlib.Path, files: list[re.Match], ema: bool | None
) -> tuple[list[str], bool | None]:
  """The files of one set of shards, in order, and whether they are averaged."""
  kinds = {bool(m["ema"]) for m in files}
  if len({(path / m[0]).stat().st_ino for m in files}) < len(files):
    _refuse_choice(path, ema)  # One file under both names.
    return _choose(path, [m for m in files if not m["ema"]], False)[0], None
  if ema is None:
    ema = True in kinds
  if ema not in kinds:
    wanted, other = ("averaged", "raw") if ema else ("raw", "averaged")
    raise FileNotFoundError(
      f"{path} holds no {wanted} weights; ask for the {other} ones"
    )
  mine = [m for m in files if bool(m["ema"]) == ema]
  format_ = min((m["format"] for m in mine), key=("safetensors", "pth").index)
  mine = [m for m in mine if m["format"] == format_]
  counts = {int(m["parts"]) for m in mine}
  if len(counts) != 1:
    raise ValueError(f"{path} holds shards of several sets: {sorted(counts)}")
  (count,) = counts
  by_part = {int(m["part"]): m[0] for m in mine}
  if missing := sorted(set(range(count)) - by_part.keys()):
    names = ", ".join(f"{number:02d}-of-{count:02d}" for number in missing)
    raise FileNotFoundError(f"{path} lacks shard {names}")
  return [by_part[part] for part in range(count)], ema


def _diffusers(path: pathlib.Path) -> Source:
  values = read_json(path / CONFIG)
  index = path / f"{DIFFUSERS}.safetensors.index.json"
  if not index.exists():
    whole = path / f"{DIFFUSERS}.safetensors"
    if not whole.exists():
      names = ", ".join(sorted(f.name for f in path.glob(f"{DIFFUSERS}*")))
      raise FileNotFoundError(
        f"{path} has {names}, and neither {whole.name} nor {index.name}; save "
        "it with safe_serialization=True and no variant"
      )
    return Source("diffusers", [_tensors(whole)], values, None)
  tensors = {}
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(name, str) and name == os.path.basename(name)
    for name in weight_map.values()
  ):
    raise ValueError(
      f"{index} cannot be read: it has no weight_map to files beside it"
    )
  for name in sorted(set(weight_map.values())):
    if not (path / name).exists():
      raise FileNotFoundError(f"{path} lacks {name}, which {index.name} names")
    tensors |= _tensors(path / name)
  return Source("diffusers", [tensors], values, None)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The values in a file of names and values.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is none.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing")
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  if not isinstance(values, dict):
    raise ValueError(f"{path} cannot be read: it holds no names and values")
  return values


def _tensors(path: pathlib.Path) -> dict[str, Tensor]:
  if path.suffix == ".safetensors":
    return _unwrapped(safetensors.read(path))
  value = pth.read(path)
  # Trainers wrap the state dict; what stands beside it is not ours.
  for wrapper in ("state_dict", "model"):
    if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
      value = value[wrapper]
  if not isinstance(value, dict) or not all(
    isinstance(v, pth.Tensor) for v in value.values()
  ):
    raise ValueError(
      f"{path} holds no state dict: expected tensors by name, or such a dict "
      "under 'state_dict' or 'model'"
    )
  return _unwrapped(value)


def _inner(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The network within a whole model of the audio code; {} = there is none."""
  return {
    key.removeprefix(LIGHTNING): tensor
    for key, tensor in tensors.items()
    if key.startswith(LIGHTNING)
  }


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """Without what PyTorch's wrappers put before every name."""
  for prefix in ("module.", "_orig_mod."):
    if tensors and all(key.startswith(prefix) for key in tensors):
      return {k.removeprefix(prefix): v for k, v in tensors.items()}
  return tensors


# Dimension along which fairscale cuts a weight; all others are whole on every
# shard. Biases of the first kind are cut with their rows.
CUT = {
  0: r"(wq|wk|wv|wk_y|wv_y|w1|w3|x_embedder|mlp\.0|cap_embedder\.1|"
  r"adaLN_modulation\.1|final_layer\.linear)\.(weight|bias)|"
  r"(q_norm|k_norm|ky_norm)\.(weight|bias)|attention\.gate",
  1: r"(wo|w2|mlp\.2|embedding_table)\.weight",
}


class Merged:
  """The shards of a tensor-parallel run as one state dict."""

  def __init__(self, shards: list[dict[str, Tensor]]):
    """Lines up shards.

    Raises:
      ValueError: if they do not hold the same keys.
    """
    for number, shard in enumerate(shards):
      if odd := shard.keys() ^ shards[0].keys():
        raise ValueError(
          f"shards 0 and {number} hold different keys: {', '.join(sorted(odd))}"
        )
    self._shards = shards
    if len(shards) > 1 and any(k.endswith("q_norm.weight") for k in shards[0]):
      logging.warning(
        "%d shards: each normed the queries and keys of its own heads; merged, "
        "the norm runs over all heads, so outputs differ from theirs",
        len(shards),
      )

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the whole tensors, by the rules of fairscale."""
    return {key: self._shape(key) for key in self._shards[0]}

  def read(self, key: str) -> np.ndarray:
    """One whole tensor."""
    parts = [shard[key] for shard in self._shards]
    dim = self._dim(key)
    if dim is None:
      return parts[0].read()
    return np.concatenate([part.read() for part in parts], axis=dim)

  def _shape(self, key: str) -> tuple[int, ...]:
    shape, dim = list(self._shards[0][key].shape), self._dim(key)
    if dim is not None:
      shape[dim] = sum(shard[key].shape[dim] for shard in self._shards)
    return tuple(shape)

  def _dim(self, key: str) -> int | None:
    if len(self._shards) == 1:
      return None
    for dim, pattern in CUT.items():
      if re.search(rf"(^|\.)({pattern})$", key):
        return dim
    return None
