"""What a run begins with: weights of another run, or of somebody else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lumina_jax.backbone.config import COMPUTING
from lumina_jax.interop.weights import Path
from lumina_jax.model.network import Network
from lumina_jax.runs.init_source import (
  TEXT,
  Source,
  open_source,
  shapes_of,
)
from lumina_jax.training.state import TrainState

# How a network computes and starts, and how its feed-forward got its width.
FREE = {*COMPUTING, "balance_weight", "zero_text_pool"}
FREE |= {"ffn_multiple", "ffn_factor"}
# Of positions, which a stage of another resolution may stretch; and how much of
# a caption is read.
STAGE = {"rope_theta", "rope_linear", "rope_ntk", "max_words", "max_tokens"}


class Start(NamedTuple):
  """Parameters that a state shall begin with.

  Attributes:
    taken: their paths, below "backbone" or "text_encoder".
    read: one of them by its path, float32 on the host.
  """

  taken: tuple[Path, ...]
  read: Callable[[Path], np.ndarray]


def open_start(
  network: Network, source: str | os.PathLike, strict: bool = True
) -> Start:
  """Opens weights to begin with and compares them with what is to be trained.

  A workdir, or a folder of `save_pretrained`, gives the text encoder that was
  trained along, too; what `open_weights` reads beside gives a backbone. Of a
  run the averaged parameters are taken, for parameters and average alike: they
  are what its pictures were judged by, while the last raw ones carry the noise
  of the last batches. (The original takes raw ones for both.) Stages of one
  network at growing resolutions are equal here. Prints what does not agree.

  Args:
    network: what is to be trained.
    source: a path.
    strict: whether all must agree; otherwise each tensor is taken whose path
      and shape do, and the rest starts anew.

  Raises:
    FileNotFoundError: if nothing is there.
    ValueError: if it cannot be read; if it is strict and anything differs,
      naming fields and tensors; if there is nothing in common.
  """
  there = open_source(source)
  wanted = shapes_of(network.shapes())
  fields, notes = _compare(network, there)
  taken = tuple(p for p in wanted if there.shapes.get(p) == wanted[p])
  tensors = _tensors(wanted, there.shapes)
  if strict:
    alone = not any(path[0] == TEXT for path in there.shapes)
    must = {p: s for p, s in wanted.items() if p[0] != TEXT or not alone}
    wrong = fields or [line.strip() for line in _tensors(must, there.shapes)]
    if wrong:
      raise ValueError(
        f"init_from = {source} is of another network: {'; '.join(wrong)}. "
        "init_strict = False takes what agrees"
      )
  if not taken:
    raise ValueError(
      f"init_from = {source} has no tensor in common with this network"
    )
  lines = [*fields, *notes, *tensors]
  if lines:
    count = f"{len(taken)} of {len(wanted)} tensors"
    rest = f"{len(wanted) - len(taken)} start anew"
    head = f"init_from = {source}: {count} taken, {rest}"
    print("\n  ".join([head, *lines]), flush=True)
  return Start(taken, there.read)


def begin_with(state: TrainState, start: Start) -> TrainState:
  """A fresh state whose parameters, and their average, come from elsewhere.

  They are read and placed on the devices one at a time; each of several
  processes reads all of them and keeps what its devices hold.

  Args:
    state: from `create_state`; given away.
    start: of the same network, from `open_start`.
  """
  for leaf in jax.tree.leaves(state.ema):
    leaf.delete()
  flat = traverse_util.flatten_dict(state.params)
  for path in start.taken:
    sharding = flat[path].sharding
    array = start.read(path)
    flat[path].delete()  # No device shall hold it twice.
    flat[path] = jax.make_array_from_callback(
      array.shape, sharding, array.__getitem__
    ).block_until_ready()
  params = traverse_util.unflatten_dict(flat)
  # The step gives its state away, so the average needs arrays of its own.
  copy = jax.jit(
    lambda tree: jax.tree.map(jnp.copy, tree),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params),
  )
  return state._replace(params=params, ema=copy(params))


def _compare(network: Network, there: Source) -> tuple[list[str], list[str]]:
  """What differs of the network, and what may differ between its stages."""
  fields = list(_fields("model", network.model, there.model))
  if network.model.ffn_width != there.model.ffn_width:
    widths = network.model.ffn_width, there.model.ffn_width
    fields.append("model.ffn_width = {}, there {}".format(*widths))
  text = network.text_encoder
  if text and there.text:
    if type(text) is type(there.text):
      fields += _fields(TEXT, text, there.text)
    else:
      kinds = type(text).__name__, type(there.text).__name__
      fields.append("{} is a {}, there a {}".format(TEXT, *kinds))
  mine, other = network.objective, there.objective
  if (mine.path, mine.prediction) != (other.path, other.prediction):
    fields.append(f"objective: {mine.summary}, there {other.summary}")
  staged = [f for f in fields if f.split(" = ")[0].split(".")[-1] in STAGE]
  return [f for f in fields if f not in staged], staged


def _fields(at: str, mine: Any, there: Any) -> Iterable[str]:
  for field in dataclasses.fields(mine):
    values = getattr(mine, field.name), getattr(there, field.name)
    if field.name not in FREE and values[0] != values[1]:
      yield "{}.{} = {!r}, there {!r}".format(at, field.name, *values)


def _tensors(
  wanted: Mapping[Path, tuple[int, ...]],
  there: Mapping[Path, tuple[int, ...]],
) -> list[str]:
  """Lines on every tensor that does not agree, with counts."""
  kinds = {
    "missing there": {p: wanted[p] for p in wanted if p not in there},
    "of another shape": {
      p: f"{wanted[p]}, there {there[p]}"
      for p in wanted
      if p in there and there[p] != wanted[p]
    },
    "left over there": {p: there[p] for p in there if p not in wanted},
  }
  lines = []
  for kind, tensors in kinds.items():
    if tensors:
      lines.append(f"{len(tensors)} {kind}:")
      lines += [f"  {'/'.join(p)}: {shape}" for p, shape in tensors.items()]
  return lines
