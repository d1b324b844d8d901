"""Schedules against their formulas, within jit, and what does not fit."""

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


def config(**changes):
  return dataclasses.replace(CFG, **changes)


def share(cfg, done):
  """Of the peak, by hand."""
  if done < cfg.warmup_steps:
    return done / cfg.warmup_steps
  if cfg.decay == "cosine":
    part = (done - cfg.warmup_steps) / (STEPS - cfg.warmup_steps)
    return cfg.final_share + (1 - cfg.final_share) * (
      (1 + math.cos(math.pi * part)) / 2
    )
  left = max(STEPS - done, 0)
  part = min(left / cfg.decay_steps, 1)
  return cfg.final_share + (1 - cfg.final_share) * part


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(final_share=0.0),
    dict(warmup_steps=0),
    dict(warmup_steps=30),
    dict(decay_steps=1),
    COSINE,
    COSINE | dict(warmup_steps=0),
  ],
)
def test_every_rate_equals_the_formula_in_and_out_of_jit(changes):
  cfg = config(**changes)
  rates = schedule(cfg, STEPS)
  counts = np.arange(STEPS + 1)
  expected = [cfg.learning_rate * share(cfg, done) for done in counts]
  found = [float(rates(int(done))) for done in counts]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  traced = jax.jit(jax.vmap(rates))(jnp.asarray(counts))
  np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-8)


def test_what_comes_before_the_fall_does_not_depend_on_the_length():
  short, long = schedule(CFG, STEPS), schedule(CFG, 100 * STEPS)
  counts = jnp.arange(STEPS - CFG.decay_steps + 1)
  np.testing.assert_array_equal(jax.vmap(short)(counts), jax.vmap(long)(counts))


@pytest.mark.parametrize("past", [0, 1, 1000])
@pytest.mark.parametrize("changes", [{}, COSINE])
def test_past_its_end_a_rate_stays_at_its_share(changes, past):
  rate = schedule(config(**changes), STEPS)(STEPS + past)
  assert rate == pytest.approx(0.02)


def test_warm_up_and_decay_have_to_fit():
  schedule(config(warmup_steps=30), STEPS)
  with pytest.raises(ValueError, match=r"= 31 and decay_steps = 10 .* = 40"):
    schedule(config(warmup_steps=31), STEPS)
  with pytest.raises(ValueError, match=r"warmup_steps = 40 must be below"):
    schedule(config(warmup_steps=40), STEPS)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(decay_steps=0), r"decay_steps = 0 with decay 'wsd'.*positive"),
    (dict(decay="cosine"), r"decay_steps = 10 with decay 'cosine'"),
    (dict(decay_steps=-1), r"decay_steps = -1"),
    (dict(final_share=1.5), r"final_share = 1.5: from 0 to 1"),
    (dict(decay="constant", decay_steps=0), r"final_share = 0.2: decay 'const"),
    (dict(decay="linear"), r"'linear'.*'constant', 'cosine' or 'wsd'"),
  ],
)
def test_fields_that_no_schedule_has_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)
