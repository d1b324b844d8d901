"""AdamW with a schedule and clipping, and the average of the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters are updated.

  Attributes:
    learning_rate: at its peak.
    warmup_steps: linear from 0 to the peak.
    decay: "constant" after the warm-up, or "cosine" to 0 at the last step.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled (Loshchilov and Hutter 2019).
    clip: largest global L2 norm of a gradient.
    ema_decay: of the average of parameters that samples are drawn with; warmed
      up as min(decay, (1 + step) / (10 + step)) for the sake of short runs.
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

  def __post_init__(self):
    if self.decay not in ("constant", "cosine"):
      raise ValueError(f"decay {self.decay!r}: use 'constant' or 'cosine'")
    for name in ("learning_rate", "eps", "clip"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
    for name in ("b1", "b2", "ema_decay"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)}: from 0, below 1")


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by step.

  Raises:
    ValueError: if the run ends before the warm-up does.
  """
  if cfg.warmup_steps >= steps:
    raise ValueError(
      f"optimizer.warmup_steps = {cfg.warmup_steps} must be below "
      f"training.steps = {steps}"
    )
  if cfg.decay == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0, cfg.learning_rate, cfg.warmup_steps, steps
    )
  return optax.linear_schedule(
    0.0 if cfg.warmup_steps else cfg.learning_rate,
    cfg.learning_rate,
    max(cfg.warmup_steps, 1),
  )


def make_optimizer(
  cfg: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW."""
  return optax.chain(
    optax.clip_by_global_norm(cfg.clip),
    optax.adamw(
      schedule(cfg, steps),
      b1=cfg.b1,
      b2=cfg.b2,
      eps=cfg.eps,
      weight_decay=cfg.weight_decay,
    ),
  )


def average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
  """EMA after update number `step` (from 0): e <- d e + (1 - d) p."""
  d = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
