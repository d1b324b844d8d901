"""Schedules of the learning rate against their formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.training.optimizer_config import OptimizerConfig
from lumina_jax.training.schedule import make_schedule

STEPS = 40
CFG = OptimizerConfig(
  learning_rate=0.1,
  warmup_steps=5,
  decay="wsd",
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip=1.0,
  ema_decay=0.99,
  decay_steps=10,
  final_share=0.2,
)
COSINE = dict(decay="cosine", decay_steps=0)
CONSTANT = dict(decay="constant", decay_steps=0, final_share=0.0)


def config(**changes):
  return dataclasses.replace(CFG, **changes)


def share_of_peak(cfg, count):
  """The formula, by hand."""
  if count < cfg.warmup_steps:
    return count / cfg.warmup_steps
  if cfg.decay == "constant":
    return 1.0
  if cfg.decay == "cosine":
    progress = (count - cfg.warmup_steps) / (STEPS - cfg.warmup_steps)
    rest = (1 + math.cos(math.pi * min(progress, 1))) / 2
  else:
    rest = min(max(STEPS - count, 0) / cfg.decay_steps, 1)
  return cfg.final_share + (1 - cfg.final_share) * rest


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(final_share=0.0),
    dict(warmup_steps=0),
    dict(warmup_steps=30),
    dict(decay_steps=1),
    COSINE,
    COSINE | dict(warmup_steps=0, final_share=0.0),
    CONSTANT,
    CONSTANT | dict(warmup_steps=0),
  ],
)
def test_every_rate_equals_the_formula_in_and_out_of_jit(changes):
  """Past its end as well."""
  cfg = config(**changes)
  schedule = make_schedule(cfg, STEPS)
  counts = np.asarray([*range(STEPS + 2), 100 * STEPS])
  expected = [cfg.learning_rate * share_of_peak(cfg, n) for n in counts]
  found = [float(schedule(int(count))) for count in counts]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  traced = jax.jit(jax.vmap(schedule))(jnp.asarray(counts))
  np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-8)


def test_before_it_decays_wsd_does_not_depend_on_the_length():
  short, long = make_schedule(CFG, STEPS), make_schedule(CFG, 100 * STEPS)
  counts = jnp.arange(STEPS - CFG.decay_steps)
  np.testing.assert_array_equal(jax.vmap(short)(counts), jax.vmap(long)(counts))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(warmup_steps=31), r"= 31 and decay_steps = 10 .* = 40"),
    (dict(warmup_steps=40), r"warmup_steps = 40 must be below"),
    (COSINE | dict(warmup_steps=40), r"warmup_steps = 40 .*steps = 40"),
  ],
)
def test_warmup_and_decay_have_to_fit(changes, message):
  make_schedule(config(warmup_steps=30), STEPS)
  with pytest.raises(ValueError, match=message):
    make_schedule(config(**changes), STEPS)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(decay_steps=0), r"decay_steps = 0 with decay 'wsd'.*positive"),
    (dict(decay="cosine"), r"decay_steps = 10 with decay 'cosine'"),
    (dict(decay_steps=-1), r"decay_steps = -1"),
    (dict(final_share=1.5), r"final_share = 1.5: must be from 0 to 1"),
    (dict(decay="constant", decay_steps=0), r"final_share = 0.2: decay 'const"),
    (dict(decay="linear"), r"'linear'.*constant, cosine, wsd"),
    (dict(groups=(("a", 1.0),)), r"\('a', 1.0\) must be \(pattern"),
    (dict(groups=(("a", 0.0, 0.0),)), "positive factor.*frozen"),
    (dict(groups=(("a", 1.0, -0.1),)), "not negative"),
    (dict(frozen=("(",)), r"pattern '\('"),
    (dict(frozen="backbone"), "must be a list"),
    (dict(name="sgd"), "unknown name 'sgd'; use one of: adamw, muon"),
    (dict(momentum=1.0), "momentum = 1.0"),
    (dict(clip=0.0), "clip = 0.0: must be positive"),
  ],
)
def test_an_optimizer_config_refuses_invalid_fields(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)
