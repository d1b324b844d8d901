"""AdamW or Muon, schedule and clipping, and the average of the parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lumina_jax.training import parameter_groups as groups
from lumina_jax.training import schedule as schedules
from lumina_jax.training.muon import muon
from lumina_jax.training.parameter_groups import trainable
from lumina_jax.training.schedule import schedule

__all__ = [
  "OptimizerConfig",
  "average",
  "make_optimizer",
  "moment_shardings",
  "schedule",
  "trainable",
]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters are updated.

  Attributes:
    learning_rate: at its peak.
    warmup_steps: linear from 0 to the peak.
    decay: "constant" after the warm-up, "cosine" to the last step, or "wsd",
      constant and then a line; see `schedule`.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled (Loshchilov and Hutter 2019).
    clip: largest global L2 norm of the gradients of all that is trained.
    ema_decay: of the average of parameters that samples are drawn with; warmed
      up as min(decay, (1 + step) / (10 + step)) for the sake of short runs.
    name: "adamw", or "muon" for the hidden matrices of the blocks, with AdamW
      for the rest; see `training.muon`.
    momentum: decay of Muon's momentum.
    final_share: of the peak, what "cosine" and "wsd" end at.
    decay_steps: how many of the last steps "wsd" falls along.
    decay_vectors: whether weight decay is also of scales, biases, gates and
      learnt tokens, as in the original, or of matrices and tables only.
    groups: (pattern, factor of the learning rate, weight decay) each, for the
      parameters in whose name, e.g. "backbone/blocks/attention/query/kernel",
      the regular expression is found; the first that fits counts.
    frozen: such patterns of parameters that stay as they are. They have no
      moments, and their gradients do not count when clipping.
  """

  learning_rate: float
  warmup_steps: int
  decay: str
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip: float
  ema_decay: float
  name: str = "adamw"
  momentum: float = 0.95
  final_share: float = 0.0
  decay_steps: int = 0
  decay_vectors: bool = True
  groups: tuple[tuple[str, float, float], ...] = ()
  frozen: tuple[str, ...] = ()

  def __post_init__(self):
    for name in ("groups", "frozen"):
      if isinstance(getattr(self, name), str):
        raise ValueError(f"{name} = {getattr(self, name)!r}: must be a list")
    object.__setattr__(self, "groups", tuple(map(tuple, self.groups)))
    object.__setattr__(self, "frozen", tuple(self.frozen))
    if self.name not in ("adamw", "muon"):
      raise ValueError(f"name {self.name!r}: use 'adamw' or 'muon'")
    for name in ("learning_rate", "eps", "clip"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    for name in ("b1", "b2", "ema_decay", "momentum"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)}: from 0, below 1")
    schedules.check(self)
    groups.check(self)


def make_optimizer(
  cfg: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW or Muon by group.

  Its state has moments of what they are needed for only; `moment_shardings`
  places it. `init` and `update` raise the errors of `trainable`.

  Args:
    cfg: of the optimizer.
    steps: of the whole run.

  Raises:
    ValueError: if warm-up and decay do not fit into the run.
  """
  rates = schedule(cfg, steps)
  clip = optax.clip_by_global_norm(cfg.clip)
  rules = groups.rules(cfg)
  if len(rules) == 1 and not cfg.frozen:  # The state that older runs saved.
    return optax.chain(clip, _rule(cfg, rates, *rules["adamw"]))
  if cfg.frozen:
    clip = optax.masked(clip, functools.partial(trainable, cfg))
  transforms = {label: _rule(cfg, rates, *how) for label, how in rules.items()}
  if cfg.frozen:
    transforms[groups.FROZEN] = optax.set_to_zero()
  labels = functools.partial(groups.labels, cfg)
  return optax.chain(clip, optax.partition(transforms, labels))


def _rule(
  cfg: OptimizerConfig,
  rates: optax.Schedule,
  kind: str,
  factor: float,
  weight_decay: float,
) -> optax.GradientTransformation:
  scaled = rates
  if factor != 1:
    scaled = lambda count: factor * rates(count)  # noqa: E731
  if kind == "muon":
    return muon(scaled, cfg.momentum, weight_decay)
  return optax.adamw(
    scaled,
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.eps,
    weight_decay=weight_decay,
    mask=None if cfg.decay_vectors else groups.matrices,
  )


def moment_shardings(
  tx: optax.GradientTransformation,
  moments: Any,
  of_params: Any,
  everywhere: Any,
) -> Any:
  """Shardings of an optimizer's state: moments lie like their parameters.

  Args:
    tx: the optimizer.
    moments: its state, or the shapes of it.
    of_params: shardings of the parameters.
    everywhere: that of counts and whatever else is no moment.
  """

  def absent(x):  # Optax marks so what a rule does not update.
    return isinstance(x, optax.MaskedNode)

  return optax.tree.map_params(
    tx,
    lambda moment, sharding: moment if absent(moment) else sharding,
    moments,
    of_params,
    transform_non_params=lambda _: everywhere,
    is_leaf=absent,
  )


def average(
  ema: Any,
  params: Any,
  step: jax.Array,
  decay: float,
  trained: Any = None,
) -> Any:
  """EMA after update number `step` (from 0): e <- d e + (1 - d) p.

  Args:
    ema: the average so far.
    params: after the update.
    step: `i32[]`.
    decay: its largest d.
    trained: a tree of bool from `trainable`; where False the average stays,
      which rounding would else move. None = all.
  """
  d = jnp.minimum(decay, (1 + step) / (10 + step))
  if trained is None:
    trained = jax.tree.map(lambda _: True, params)
  return jax.tree.map(
    lambda e, p, moves: d * e + (1 - d) * p if moves else e,
    ema,
    params,
    trained,
  )
