"""Which parameters are updated how, by the names of their paths.

A name is a path such as "backbone/blocks/attention/query/kernel".
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import jax

from lumina_jax.training import muon

if TYPE_CHECKING:
  from lumina_jax.training.optimizer import OptimizerConfig

FROZEN = "frozen"
# Matrices and tables. What is left are scales, biases, gates and tokens, which
# are vectors even where layers or heads give them more axes.
NOT_VECTORS = re.compile(r"(kernel|/bytes|/label_embed)$")


def names(params: Any) -> Any:
  """A tree of parameters -> the same of their names."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"),
    params,
  )


def labels(cfg: OptimizerConfig, params: Any) -> Any:
  """Which rule updates each parameter, of the keys of `rules`.

  Of the groups the first counts whose pattern is found in the name; what is
  frozen is so whatever its group.

  Args:
    cfg: of the optimizer.
    params: a tree; of its leaves only the paths matter.

  Raises:
    ValueError: if a pattern is found in no name, or all is frozen.
  """
  tree = names(params)
  flat = jax.tree.leaves(tree)
  if flat:  # Optax asks for the labels of a tree without any, too.
    _check(cfg, flat)
  return jax.tree.map(lambda name: _label(cfg, name), tree)


def rules(cfg: OptimizerConfig) -> dict[str, tuple[str, float, float]]:
  """Label -> name of the rule, factor of the learning rate, weight decay."""
  kinds = ("adamw", "muon") if cfg.name == "muon" else ("adamw",)
  numbered = {"": ("", 1.0, cfg.weight_decay)} | {
    f"_{number}": group for number, group in enumerate(cfg.groups)
  }
  return {
    kind + suffix: (kind, factor, decay)
    for kind in kinds
    for suffix, (_, factor, decay) in numbered.items()
  }


def trainable(cfg: OptimizerConfig, params: Any) -> Any:
  """A tree of parameters -> the same of bool, False where they are frozen.

  Raises:
    ValueError: as `labels`.
  """
  return jax.tree.map(lambda label: label != FROZEN, labels(cfg, params))


def matrices(params: Any) -> Any:
  """A tree of parameters -> the same of bool, False where they are vectors."""
  return jax.tree.map(
    lambda name: bool(NOT_VECTORS.search(f"/{name}")), names(params)
  )


def check(cfg: OptimizerConfig) -> None:
  """Finds groups and patterns that no network has.

  Raises:
    ValueError: naming them.
  """
  for group in cfg.groups:
    if len(group) != 3:
      raise ValueError(
        f"groups: {group!r} must be (pattern, factor of the learning rate, "
        "weight decay)"
      )
    pattern, factor, decay = group
    if not factor > 0 or decay < 0:
      raise ValueError(
        f"groups: {group!r} must have a positive factor and a weight decay "
        "that is not negative; what shall not move goes into frozen"
      )
  for pattern in _patterns(cfg):
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise ValueError(f"pattern {pattern!r}: {error}") from error


def _label(cfg: OptimizerConfig, name: str) -> str:
  if any(re.search(pattern, name) for pattern in cfg.frozen):
    return FROZEN
  kind = "muon" if cfg.name == "muon" and muon.matrix(name) else "adamw"
  for number, (pattern, *_) in enumerate(cfg.groups):
    if re.search(pattern, name):
      return f"{kind}_{number}"
  return kind


def _check(cfg: OptimizerConfig, flat: list[str]) -> None:
  for pattern in _patterns(cfg):
    if not any(re.search(pattern, name) for name in flat):
      near = difflib.get_close_matches(pattern, flat, n=3, cutoff=0.3)
      there = ", ".join(near or flat[:3])
      raise ValueError(
        f"optimizer: pattern {pattern!r} is found in no name of the "
        f"{len(flat)} parameters; there are {there}"
      )
  if all(_label(cfg, name) == FROZEN for name in flat):
    raise ValueError(f"optimizer.frozen = {cfg.frozen} leaves nothing to train")


def _patterns(cfg: OptimizerConfig) -> tuple[str, ...]:
  return (*(group[0] for group in cfg.groups), *cfg.frozen)
