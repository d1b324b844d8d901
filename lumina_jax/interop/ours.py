"""Our own files: a folder of weights alone, and a run's checkpoints.

`<folder>/network.json` says which network, `<folder>/params` holds its
parameters as an orbax checkpoint. Both are read and written a parameter at a
time, so that converting a network never takes its whole size in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import type_handlers

from lumina_jax.backbone import ModelConfig, shapes
from lumina_jax.files import schema
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.interop import place, safetensors
from lumina_jax.interop.comparison import Shapes, check
from lumina_jax.interop.source import read_json
from lumina_jax.interop.target import Progress, check_destination
from lumina_jax.interop.weights import Path, Weights, read_as
from lumina_jax.training import run_config

NETWORK = "network.json"
PARAMS = "params"
EXPORTED = "model.safetensors"
CHUNK_BYTES = 64 << 20  # What orbax encodes, and a reader decodes, at once.


class OrbaxWeights:
  """The backbone in an orbax checkpoint.

  Attributes:
    cfg: the network.
    args: nothing; other formats say more beside the weights.
    ema: whether they are averaged; None = the files do not say.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    folder: pathlib.Path,
    above: Path = (),
    ema: bool | None = None,
  ):
    """Opens a checkpoint and checks every shape.

    Args:
      cfg: the network.
      folder: of the orbax item.
      above: where in its tree the parameters of the backbone stand.
      ema: whether they are averaged.

    Raises:
      ValueError: if it cannot be read, or is of another network.
    """
    self.cfg, self.ema = cfg, ema
    self.args: Mapping[str, Any] = {}
    self._folder, self._above = folder, above
    self._handler = ocp.PyTreeCheckpointHandler()
    try:
      tree = self._handler.metadata(folder).tree
    except Exception as error:  # Orbax raises many kinds for broken files.
      raise ValueError(f"{folder} cannot be read: {error}") from error
    for name in above:
      tree = tree[name]
    found = traverse_util.flatten_dict(tree, sep="/")
    _check(cfg, {name: tuple(x.shape) for name, x in found.items()}, folder)

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """One of our parameters, by its path."""
    flat = {(*self._above, *path): 0}
    args = ocp.args.PyTreeRestore(
      item=traverse_util.unflatten_dict(flat),
      restore_args=traverse_util.unflatten_dict(
        {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in flat}
      ),
      partial_restore=True,
    )
    try:
      tree = self._handler.restore(self._folder, args=args)
    except Exception as error:
      raise ValueError(f"{self._folder} cannot be read: {error}") from error
    (array,) = traverse_util.flatten_dict(tree).values()
    return array if dtype is None else array.astype(dtype, copy=False)


class ExportedWeights:
  """The backbone in a folder that `LuminaPipeline.save_pretrained` wrote.

  Attributes are those of `OrbaxWeights`.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens an export and checks every shape.

    Raises:
      ValueError: if it cannot be read, or is none of ours.
    """
    values = read_json(folder / run_config.FILE)
    if "model" not in values:
      raise ValueError(
        f"{folder / run_config.FILE} describes no network of ours; a folder "
        "that save_pretrained wrote was expected"
      )
    self.cfg = schema.parse(ModelConfig, values["model"], f"{folder}: model")
    self.args: Mapping[str, Any] = {}
    self.ema: bool | None = None
    self._tensors = safetensors.read(folder / EXPORTED)
    prefix = "backbone."
    found = {
      key.removeprefix(prefix).replace(".", "/"): tensor.shape
      for key, tensor in self._tensors.items()
      if key.startswith(prefix)
    }
    _check(self.cfg, found, folder / EXPORTED)

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """One of our parameters, by its path."""
    array = self._tensors[".".join(("backbone", *path))].read()
    return array if dtype is None else array.astype(dtype, copy=False)


def _check(cfg: ModelConfig, found: Shapes, at: pathlib.Path) -> None:
  expected = traverse_util.flatten_dict(shapes(cfg), sep="/")
  try:
    check({name: x.shape for name, x in expected.items()}, found)
  except ValueError as error:
    raise ValueError(f"{at}: {error}") from error


def open_ours(folder: pathlib.Path, ema: bool | None) -> Weights:
  """Opens a folder of weights, or the newest checkpoint of a run.

  Args:
    folder: written by `write_ours` or `save_pretrained`, or a workdir.
    ema: averaged weights or raw ones; None = averaged if there are both.

  Raises:
    FileNotFoundError: if it is neither, or lacks what was asked for.
    ValueError: if a file cannot be read.
  """
  single = any((folder / name).exists() for name in (NETWORK, EXPORTED))
  if single and ema is not None:
    raise FileNotFoundError(
      f"{folder} holds one set of weights and does not say which; leave --ema "
      "and --noema out"
    )
  if (folder / EXPORTED).exists():
    return ExportedWeights(folder)
  if (folder / NETWORK).exists():
    values = read_json(folder / NETWORK)
    cfg = schema.parse(ModelConfig, values, str(folder / NETWORK))
    return OrbaxWeights(cfg, (folder / PARAMS).absolute())
  config = run_config.load(folder)
  steps = [
    int(entry.name)
    for entry in (folder / "checkpoints").glob("*")
    if entry.name.isdigit()
  ]
  if not steps:
    raise FileNotFoundError(f"{folder} has no checkpoint yet; train on")
  step = (folder / "checkpoints" / str(max(steps))).absolute()
  if ema is False:
    above = ("params", "backbone")
    return OrbaxWeights(config.model, step / "train", above, False)
  return OrbaxWeights(config.model, step / "ema", ("backbone",), True)


def is_ours(folder: pathlib.Path) -> bool:
  """Whether a folder is one that `open_ours` reads."""
  beside_config = EXPORTED, "checkpoints"
  return (folder / NETWORK).exists() or (
    (folder / run_config.FILE).exists()
    and any((folder / name).exists() for name in beside_config)
  )


def objective(folder: pathlib.Path) -> Objective:
  """What the network in a folder that `open_ours` reads was trained for.

  Where nothing is said of it, that is the velocity of the linear path.
  """
  if (folder / EXPORTED).exists():
    values = read_json(folder / run_config.FILE).get("objective", {})
    return schema.parse(Objective, values, f"{folder}: objective")
  if (folder / NETWORK).exists():
    return PLAIN
  return run_config.load(folder).objective


def write_ours(
  weights: Weights,
  folder: pathlib.Path,
  dtype: np.dtype,
  overwrite: bool,
  progress: Progress,
) -> None:
  """Writes a folder of weights alone.

  Raises:
    FileExistsError: if it exists and may not be overwritten.
    OSError: if the disk has no room. Nothing is left half written.
  """
  check_destination(folder)
  flat = traverse_util.flatten_dict(shapes(weights.cfg))
  done = 0

  def later(path):
    def read():
      nonlocal done
      progress(done := done + 1, len(flat))
      return read_as(weights, path, dtype)

    return _Later(flat[path].shape, dtype, read)

  tree = traverse_util.unflatten_dict({path: later(path) for path in flat})
  nbytes = sum(math.prod(x.shape) for x in flat.values()) * dtype.itemsize
  with place.new(folder, nbytes, overwrite) as new:
    new.mkdir()
    registry = type_handlers.create_type_handler_registry((_Later, _OneByOne()))
    # OCDBT would keep a parameter in memory once more until it is committed.
    handler = ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry, use_ocdbt=False
    )
    chunks = {path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for path in flat}
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(
        (new / PARAMS).absolute(),
        args=ocp.args.PyTreeSave(
          tree,
          save_args=traverse_util.unflatten_dict(chunks),
        ),
      )
    text = json.dumps(schema.to_dict(weights.cfg), indent=2) + "\n"
    (new / NETWORK).write_text(text)


@dataclasses.dataclass(frozen=True)
class _Later:
  """A leaf of the tree to save, read when orbax comes to it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class _OneByOne(type_handlers.NumpyHandler):
  """Lets orbax write tensors that are read only when their turn comes."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)

  async def serialize(self, values, infos, args=None):
    for value, info, arg in zip(values, infos, args, strict=True):
      (written,) = await super().serialize([value.read()], [info], [arg])
      written.result()
      del written  # It holds the array.
    return []
