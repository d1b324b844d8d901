"""Parameters that a run starts from: `config.init_from`."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lumina_jax.backbone.config import COMPUTING
from lumina_jax.interop.shapes import differences
from lumina_jax.interop.weights import Path
from lumina_jax.model.network import Network
from lumina_jax.runs.parameter_source import (
  TEXT,
  ParameterSource,
  Shapes,
  open_source,
  shapes_of,
)

# Fields that do not change what parameters mean: how a network computes and is
# initialised, and how the width of its feed-forward was chosen.
IGNORED = {*COMPUTING, "balance_weight", "zero_text_pool"}
IGNORED |= {"ffn_multiple", "ffn_factor"}
# Fields that may differ between stages: rules for positions at another
# resolution, and how much of a caption is read.
STAGE = {"rope_theta", "rope_linear", "rope_ntk", "max_words", "max_tokens"}


@dataclasses.dataclass(frozen=True)
class InitialParameters:
  """Parameters of another network that fit the one to train.

  Attributes:
    paths: their paths, below "backbone" or "text_encoder".
    read: reads one of them by its path, as float32 on the host.
  """

  paths: tuple[Path, ...]
  read: Callable[[Path], np.ndarray]

  def __iter__(self) -> Iterator[tuple[Path, np.ndarray]]:
    """Reads all of them, one by one."""
    return ((path, self.read(path)) for path in self.paths)


def resolve(
  network: Network, source: str | os.PathLike, strict: bool = True
) -> InitialParameters | None:
  """Opens parameters to start from and compares them with a network.

  A workdir or a folder of `save_pretrained` holds the text encoder, too; all
  other sources hold the backbone alone. The EMA weights of a run initialise
  both parameters and EMA: its samples were judged with them, and raw weights
  carry the noise of the last batches. (The original starts both from raw
  weights.) Stages of one network at growing resolutions count as equal. Prints
  everything that differs.

  Args:
    network: the network to train.
    source: path of the parameters; "" = none.
    strict: whether everything must agree; otherwise each tensor of the same
      path and shape is used, and all others keep their random values.

  Raises:
    FileNotFoundError: if the source is missing.
    ValueError: if it cannot be read; with `strict`, if anything differs, naming
      fields and tensors; if no tensor fits.
  """
  if not source:
    return None
  found = open_source(source)
  shapes = shapes_of(network.shapes())
  paths = tuple(p for p in shapes if found.shapes.get(p) == shapes[p])
  fields, stage = _compare_fields(network, found)
  if strict:
    _check_equal(source, fields, shapes, found.shapes)
  if not paths:
    raise ValueError(
      f"init_from = {source} has no tensor in common with this network"
    )
  lines = [*fields, *stage, *_compare_shapes(shapes, found.shapes)]
  if lines:
    used = f"uses {len(paths)} of {len(shapes)} tensors"
    rest = f"{len(shapes) - len(paths)} keep random values"
    head = f"init_from = {source}: {used}, {rest}"
    print("\n  ".join([head, *lines]), flush=True)
  return InitialParameters(paths, found.read)


def _check_equal(
  source: str | os.PathLike, fields: list[str], shapes: Shapes, found: Shapes
) -> None:
  """Raises a ValueError if fields or tensors differ.

  A source without any text encoder may lack it.
  """
  if not any(path[0] == TEXT for path in found):
    shapes = {path: x for path, x in shapes.items() if path[0] != TEXT}
  lines = fields or [line.strip() for line in _compare_shapes(shapes, found)]
  if lines:
    raise ValueError(
      f"init_from = {source} is of another network: {'; '.join(lines)}. "
      "init_strict = False uses the tensors that fit"
    )


def _compare_fields(
  network: Network, found: ParameterSource
) -> tuple[list[str], list[str]]:
  """Lines on fields that differ, and on those that may differ by stage."""
  lines = list(_differences("model", network.model, found.model))
  if network.model.ffn_width != found.model.ffn_width:
    widths = network.model.ffn_width, found.model.ffn_width
    lines.append("model.ffn_width = {}, but {} in the source".format(*widths))
  text = network.text_encoder
  if text and found.text_encoder:
    if type(text) is type(found.text_encoder):
      lines += _differences(TEXT, text, found.text_encoder)
    else:
      kinds = type(text).__name__, type(found.text_encoder).__name__
      lines.append("{} is a {}, but a {} in the source".format(TEXT, *kinds))
  ours, theirs = network.objective, found.objective
  if (ours.path, ours.prediction) != (theirs.path, theirs.prediction):
    lines.append(
      f"objective: {ours.summary}, but {theirs.summary} in the source"
    )
  stage = [x for x in lines if x.split(" = ")[0].rpartition(".")[2] in STAGE]
  return [line for line in lines if line not in stage], stage


def _differences(section: str, ours: Any, theirs: Any) -> Iterator[str]:
  for field in dataclasses.fields(ours):
    values = getattr(ours, field.name), getattr(theirs, field.name)
    if field.name not in IGNORED and values[0] != values[1]:
      name = f"{section}.{field.name}"
      yield "{} = {!r}, but {!r} in the source".format(name, *values)


def _compare_shapes(shapes: Shapes, found: Shapes) -> list[str]:
  """Lines on every tensor that differs, with counts."""
  named = (
    {"/".join(p): x for p, x in tree.items()} for tree in (shapes, found)
  )
  return differences(*named)
