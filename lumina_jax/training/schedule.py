"""The learning rate by updates done: warm-up, peak, decay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

if TYPE_CHECKING:
  from lumina_jax.training.optimizer import OptimizerConfig

DECAYS = ("constant", "cosine", "wsd")


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by updates done, a number or a traced `i32[]`.

  All decays warm up linearly from 0 to the peak. Then "constant" stays there,
  "cosine" falls to `final_share` of it at `steps` along half a cosine, and
  "wsd" stays until `decay_steps` before the end and falls to that share along a
  line. Warm-up, stable, decay is of Hu et al. 2024 (MiniCPM, section 4), the
  line in place of their exponential of Hägele et al. 2024 ("Scaling laws and
  compute-optimal training beyond fixed training durations"). Until it falls,
  such a run does not depend on its length.

  Args:
    cfg: of the optimizer.
    steps: of the whole run.

  Raises:
    ValueError: if warm-up and decay do not fit into the run.
  """
  if cfg.warmup_steps >= steps:
    raise ValueError(
      f"optimizer.warmup_steps = {cfg.warmup_steps} must be below "
      f"training.steps = {steps}"
    )
  if cfg.warmup_steps + cfg.decay_steps > steps:
    raise ValueError(
      f"optimizer.warmup_steps = {cfg.warmup_steps} and decay_steps = "
      f"{cfg.decay_steps} do not fit into training.steps = {steps}; shorten "
      "one of them"
    )
  if cfg.decay == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0,
      cfg.learning_rate,
      cfg.warmup_steps,
      steps,
      end_value=cfg.learning_rate * cfg.final_share,
    )
  rising = optax.linear_schedule(
    0.0 if cfg.warmup_steps else cfg.learning_rate,
    cfg.learning_rate,
    max(cfg.warmup_steps, 1),
  )
  if cfg.decay == "constant":
    return rising

  def rate(count):
    done = (count - (steps - cfg.decay_steps)) / cfg.decay_steps
    return rising(count) * (1 - (1 - cfg.final_share) * jnp.clip(done, 0, 1))

  return rate


def check(cfg: OptimizerConfig) -> None:
  """Finds fields that no schedule has.

  Raises:
    ValueError: naming them.
  """
  if cfg.decay not in DECAYS:
    known = ", ".join(map(repr, DECAYS[:-1]))
    raise ValueError(f"decay {cfg.decay!r}: use {known} or {DECAYS[-1]!r}")
  if not 0 <= cfg.final_share <= 1 or not math.isfinite(cfg.final_share):
    raise ValueError(f"final_share = {cfg.final_share}: from 0 to 1")
  if cfg.final_share and cfg.decay == "constant":
    raise ValueError(
      f"final_share = {cfg.final_share}: decay 'constant' has no end to fall "
      "to; use 'cosine' or 'wsd'"
    )
  if (cfg.decay == "wsd") != (cfg.decay_steps > 0):
    raise ValueError(
      f"decay_steps = {cfg.decay_steps} with decay {cfg.decay!r}: decay 'wsd' "
      "takes a positive number of them, the others 0"
    )
