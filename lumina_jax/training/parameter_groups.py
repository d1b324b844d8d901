"""Groups of parameters, selected by name, and their update rules.

A parameter's name is its path, e.g. "backbone/blocks/attention/out/kernel".
"""

import difflib
import re
from typing import Any, NamedTuple

import jax

from lumina_jax.training import muon
from lumina_jax.training.optimizer_config import OptimizerConfig

FROZEN = "frozen"
# Matrices and tables. All others are scales, biases, gates and tokens: vectors,
# even where layers or heads give them more axes.
NOT_VECTORS = re.compile(r"(kernel|/bytes|/label_embed)$")


class Rule(NamedTuple):
  """How one group of parameters is updated.

  Attributes:
    optimizer: "adamw" or "muon".
    factor: factor of the learning rate.
    weight_decay: decoupled weight decay.
  """

  optimizer: str
  factor: float
  weight_decay: float


def parameter_names(params: Any) -> Any:
  """Maps a tree of parameters to the tree of their names."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"),
    params,
  )


def labels(cfg: OptimizerConfig, params: Any) -> Any:
  """Labels each parameter with its group: a key of `rules`, or `FROZEN`.

  The first group that matches wins; frozen parameters are frozen in any group.

  Args:
    cfg: options of the optimizer.
    params: a tree; only the paths of its leaves matter.

  Raises:
    ValueError: if a pattern matches no parameter, or all are frozen.
  """
  tree = parameter_names(params)
  names = jax.tree.leaves(tree)
  if names:  # Optax also asks for the labels of an empty tree.
    _check_patterns(cfg, names)
  return jax.tree.map(lambda name: _label(cfg, name), tree)


def rules(cfg: OptimizerConfig) -> dict[str, Rule]:
  """The update rule of each label."""
  optimizers = ("adamw", "muon") if cfg.name == "muon" else ("adamw",)
  groups = {"": ("", 1.0, cfg.weight_decay)} | {
    f"_{number}": group for number, group in enumerate(cfg.groups)
  }
  return {
    optimizer + suffix: Rule(optimizer, factor, decay)
    for optimizer in optimizers
    for suffix, (_, factor, decay) in groups.items()
  }


def trainable_mask(cfg: OptimizerConfig, params: Any) -> Any:
  """A tree of bool: False where a parameter is frozen.

  Raises:
    ValueError: as `labels`.
  """
  return jax.tree.map(lambda label: label != FROZEN, labels(cfg, params))


def matrix_mask(params: Any) -> Any:
  """A tree of bool: True for matrices and tables, False for vectors."""
  return jax.tree.map(
    lambda name: bool(NOT_VECTORS.search(f"/{name}")), parameter_names(params)
  )


def _label(cfg: OptimizerConfig, name: str) -> str:
  if any(re.search(pattern, name) for pattern in cfg.frozen):
    return FROZEN
  is_muon = cfg.name == "muon" and muon.matrix_axes(name)
  optimizer = "muon" if is_muon else "adamw"
  for number, (pattern, *_) in enumerate(cfg.groups):
    if re.search(pattern, name):
      return f"{optimizer}_{number}"
  return optimizer


def _check_patterns(cfg: OptimizerConfig, names: list[str]) -> None:
  for pattern in cfg.patterns:
    if not any(re.search(pattern, name) for name in names):
      near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
      examples = ", ".join(near or names[:3])
      raise ValueError(
        f"optimizer: pattern {pattern!r} matches none of the {len(names)} "
        f"parameters; their names are like {examples}"
      )
  if all(_label(cfg, name) == FROZEN for name in names):
    raise ValueError(
      f"optimizer.frozen = {cfg.frozen} leaves no parameter to train"
    )
