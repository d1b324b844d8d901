"""Finds PyTorch weights: a file or folder -> tensors and arguments."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lumina_jax.files.json_file import read_json
from lumina_jax.interop import pth, safetensors
from lumina_jax.interop.hugging_face import CONFIG, DIFFUSERS, read_tensors
from lumina_jax.interop.tensor import Tensor

SHARD = re.compile(
  r"consolidated(?P<ema>_ema)?\.(?P<part>\d+)-of-(?P<parts>\d+)"
  r"\.(?P<format>safetensors|pth)"
)
MODEL_ARGS = "model_args.pth"
# Prefix of the network in a checkpoint of the whole audio model.
LIGHTNING = "model.diffusion_model."
EXPECTED = (
  "a .safetensors or .pth file; a folder of the original code "
  "(consolidated[_ema].00-of-01.safetensors or .pth); a diffusers folder, or "
  f"its transformer/ ({CONFIG} and {DIFFUSERS}.safetensors)"
)


class PyTorchFiles(NamedTuple):
  """Weights on disk, not yet read.

  Attributes:
    layout: "lumina" or "diffusers".
    shards: Tensors by key, one dict for each tensor-parallel shard.
    args: Arguments stored with them: model_args or config.json.
    ema: Whether they are EMA weights; None if the files do not say.
  """

  layout: str
  shards: list[dict[str, Tensor]]
  args: dict[str, Any]
  ema: bool | None


def find_weights(path: pathlib.Path, ema: bool | None = None) -> PyTorchFiles:
  """Finds the weights at a path, without reading them.

  Args:
    path: a file or a folder.
    ema: True for EMA weights, False for raw ones; None prefers EMA.

  Raises:
    FileNotFoundError: if there are no weights, or none of the kind that `ema`
      selects.
    ValueError: if a file is broken, or holds no state dict.
  """
  path = path.expanduser()
  if path.is_file():
    return _lone_file(path, ema)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist; expected {EXPECTED}")
  if (path / "transformer" / CONFIG).exists():
    path = path / "transformer"
  if any(path.glob(f"{DIFFUSERS}*")):
    refuse_ema(path, ema)
    values = read_json(path / CONFIG)
    tensors = _without_wrappers(read_tensors(path, DIFFUSERS))
    return PyTorchFiles("diffusers", [tensors], values, None)
  files = [m for f in path.iterdir() if (m := SHARD.fullmatch(f.name))]
  if not files:
    names = ", ".join(sorted(f.name for f in path.iterdir())[:8])
    raise FileNotFoundError(
      f"{path} holds no weights in a known layout; expected {EXPECTED}. "
      f"It holds: {names or 'nothing'}"
    )
  names, ema = _select_shards(path, files, ema)
  shards = [_state_dict(path / name) for name in names]
  args = {}
  if (path / MODEL_ARGS).exists():
    args = pth.read_namespace(path / MODEL_ARGS)
  return PyTorchFiles("lumina", shards, args, ema)


def _lone_file(path: pathlib.Path, ema: bool | None) -> PyTorchFiles:
  name = SHARD.fullmatch(path.name)
  if name and int(name["parts"]) > 1:
    raise ValueError(
      f"{path} is one of {int(name['parts'])} shards; pass the folder"
    )
  refuse_ema(path, ema)
  tensors = _state_dict(path)
  args = {}
  if path.suffix == ".safetensors":
    metadata = safetensors.metadata(path)
    if MODEL_ARGS in metadata:  # In files that lumina_jax wrote.
      args = dict(json.loads(metadata[MODEL_ARGS]))
  audio = _audio_network(tensors)
  if audio:  # The whole audio model calls its network with steps to 999.
    args = {"time_scale": 1000.0}
  return PyTorchFiles("lumina", [audio or tensors], args, None)


def refuse_ema(path: pathlib.Path, ema: bool | None) -> None:
  """Refuses a choice of weights where there is one set.

  Raises:
    FileNotFoundError: unless `ema` is None.
  """
  if ema is not None:
    raise FileNotFoundError(
      f"{path} holds one set of weights and does not say whether they are EMA "
      "weights; leave ema out"
    )


def _select_shards(
  path: pathlib.Path, files: list[re.Match], ema: bool | None
) -> tuple[list[str], bool | None]:
  """The files of one set of shards in order, and whether they are EMA."""
  kinds = {bool(m["ema"]) for m in files}
  if len({(path / m[0]).stat().st_ino for m in files}) < len(files):
    refuse_ema(path, ema)  # Hard links: both names are one file.
    raw = [m for m in files if not m["ema"]]
    return _select_shards(path, raw, False)[0], None
  if ema is None:
    ema = True in kinds
  if ema not in kinds:
    wanted, other = ("EMA", "raw") if ema else ("raw", "EMA")
    raise FileNotFoundError(
      f"{path} holds no {wanted} weights, only {other} ones; pass "
      f"ema={not ema} ({'--noema' if ema else '--ema'})"
    )
  files = [m for m in files if bool(m["ema"]) == ema]
  format_ = min((m["format"] for m in files), key=("safetensors", "pth").index)
  files = [m for m in files if m["format"] == format_]
  counts = {int(m["parts"]) for m in files}
  if len(counts) != 1:
    raise ValueError(f"{path} holds several sets of shards: {sorted(counts)}")
  (count,) = counts
  by_part = {int(m["part"]): m[0] for m in files}
  if missing := sorted(set(range(count)) - by_part.keys()):
    names = ", ".join(f"{number:02d}-of-{count:02d}" for number in missing)
    raise FileNotFoundError(f"{path} lacks shard {names}")
  return [by_part[part] for part in range(count)], ema


def _state_dict(path: pathlib.Path) -> dict[str, Tensor]:
  if path.suffix == ".safetensors":
    return _without_wrappers(safetensors.read(path))
  value = pth.read(path)
  # Trainers store the state dict among other objects.
  for key in ("state_dict", "model"):
    if isinstance(value, dict) and isinstance(value.get(key), dict):
      value = value[key]
  if not isinstance(value, dict) or not all(
    isinstance(v, Tensor) for v in value.values()
  ):
    raise ValueError(
      f"{path} holds no state dict; expected a dict of tensors, or one under "
      "'state_dict' or 'model'"
    )
  return _without_wrappers(value)


def _audio_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The network in a checkpoint of the whole audio model; empty if none."""
  return {
    key.removeprefix(LIGHTNING): tensor
    for key, tensor in tensors.items()
    if key.startswith(LIGHTNING)
  }


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """Removes the prefix that DDP or torch.compile adds to every key."""
  for prefix in ("module.", "_orig_mod."):
    if tensors and all(key.startswith(prefix) for key in tensors):
      return {k.removeprefix(prefix): v for k, v in tensors.items()}
  return tensors
