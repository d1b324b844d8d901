"""AdamW or Muon with clipping, and the EMA of the parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lumina_jax.training import parameter_groups as groups
from lumina_jax.training.muon import muon
from lumina_jax.training.optimizer_config import OptimizerConfig
from lumina_jax.training.schedule import make_schedule


def make_optimizer(
  cfg: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Clips gradients by their global norm, then applies AdamW or Muon by group.

  The state holds only the moments that a parameter needs; `moment_shardings`
  places it. `init` and `update` raise the errors of `parameter_groups.labels`.

  Args:
    cfg: options of the optimizer.
    steps: steps of the whole run.

  Raises:
    ValueError: if warm-up and decay do not fit into the run.
  """
  schedule = make_schedule(cfg, steps)
  clip = optax.clip_by_global_norm(cfg.clip)
  if cfg.frozen:
    clip = optax.masked(clip, functools.partial(groups.trainable_mask, cfg))
  transforms = {
    label: _transform(cfg, schedule, rule)
    for label, rule in groups.rules(cfg).items()
  }
  if len(transforms) == 1 and not cfg.frozen:
    return optax.chain(clip, *transforms.values())
  if cfg.frozen:
    transforms[groups.FROZEN] = optax.set_to_zero()
  labels = functools.partial(groups.labels, cfg)
  return optax.chain(clip, optax.partition(transforms, labels))


def _transform(
  cfg: OptimizerConfig, schedule: optax.Schedule, rule: groups.Rule
) -> optax.GradientTransformation:
  """The update of one group."""

  def scaled(count):
    return rule.factor * schedule(count)

  learning_rate = schedule if rule.factor == 1 else scaled
  if rule.optimizer == "muon":
    return muon(learning_rate, cfg.momentum, rule.weight_decay)
  return optax.adamw(
    learning_rate,
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.eps,
    weight_decay=rule.weight_decay,
    mask=None if cfg.decay_vectors else groups.matrix_mask,
  )


def moment_shardings(
  tx: optax.GradientTransformation, opt_state: Any, params: Any, replicated: Any
) -> Any:
  """Shardings of the optimizer's state: moments lie like their parameters.

  Args:
    tx: the optimizer.
    opt_state: its state, or the shapes of it.
    params: shardings of the parameters.
    replicated: the sharding of counts and of all else that is no moment.
  """

  def is_masked(x):  # Optax marks parameters that a rule does not update.
    return isinstance(x, optax.MaskedNode)

  return optax.tree.map_params(
    tx,
    lambda moment, sharding: moment if is_masked(moment) else sharding,
    opt_state,
    params,
    transform_non_params=lambda _: replicated,
    is_leaf=is_masked,
  )


def update_ema(
  ema: Any, params: Any, step: jax.Array, decay: float, trainable: Any = None
) -> Any:
  """The EMA after an update: e <- d e + (1 - d) p.

  Args:
    ema: the average so far.
    params: the parameters after the update.
    step: `i32[]`, number of the update, from 0.
    decay: the largest d; it warms up as (1 + step) / (10 + step).
    trainable: a tree of bool; where False the average keeps every bit. None:
      all parameters are trainable.
  """
  d = jnp.minimum(decay, (1 + step) / (10 + step))
  if trainable is None:
    trainable = jax.tree.map(lambda _: True, params)
  return jax.tree.map(
    lambda e, p, moves: d * e + (1 - d) * p if moves else e,
    ema,
    params,
    trainable,
  )
