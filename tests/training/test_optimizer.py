"""AdamW, clipping and the EMA against their formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lumina_jax.training.optimizer import make_optimizer, update_ema
from lumina_jax.training.optimizer_config import OptimizerConfig

STEPS = 20
CFG = OptimizerConfig(
  learning_rate=0.1,
  warmup_steps=4,
  decay="cosine",
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip=1e9,
  ema_decay=0.99,
)
CURVATURE = np.array([[4.0, 1.0], [1.0, 2.0]])
START = np.array([2.0, -1.5])


def config(**changes):
  return dataclasses.replace(CFG, **changes)


def learning_rate(cfg, step):
  """The learning rate of an update, by hand."""
  if step < cfg.warmup_steps:
    return cfg.learning_rate * step / cfg.warmup_steps
  if cfg.decay == "constant":
    return cfg.learning_rate
  done = (step - cfg.warmup_steps) / (STEPS - cfg.warmup_steps)
  return cfg.learning_rate * (1 + math.cos(math.pi * done)) / 2


def by_hand(cfg, updates):
  """AdamW on x^T C x / 2 as Loshchilov and Hutter wrote it, in float64."""
  x, m, v = START.copy(), np.zeros(2), np.zeros(2)
  for step in range(updates):
    gradient = CURVATURE @ x
    gradient *= min(1, cfg.clip / np.linalg.norm(gradient))
    m = cfg.b1 * m + (1 - cfg.b1) * gradient
    v = cfg.b2 * v + (1 - cfg.b2) * gradient**2
    m_hat = m / (1 - cfg.b1 ** (step + 1))
    v_hat = v / (1 - cfg.b2 ** (step + 1))
    direction = m_hat / (np.sqrt(v_hat) + cfg.eps) + cfg.weight_decay * x
    x = x - learning_rate(cfg, step) * direction
  return x


def by_optax(cfg, updates):
  optimizer = make_optimizer(cfg, STEPS)
  params = {"first": jnp.asarray(START[:1]), "second": jnp.asarray(START[1:])}

  def loss(params):
    x = jnp.concatenate([params["first"], params["second"]])
    return x @ CURVATURE @ x / 2

  @jax.jit
  def update(params, state):
    changes, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, changes), state

  state = optimizer.init(params)
  for _ in range(updates):
    params, state = update(params, state)
  return np.concatenate([params["first"], params["second"]])


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(decay="constant", warmup_steps=0),
    dict(weight_decay=0.0, eps=0.1),
    dict(clip=2.0),
  ],
)
def test_ten_steps_equal_adamw_by_hand(changes):
  cfg = config(**changes)
  np.testing.assert_allclose(by_optax(cfg, 10), by_hand(cfg, 10), rtol=1e-4)
  assert np.abs(by_hand(cfg, 10) - by_hand(config(b1=0.5), 10)).max() > 1e-2


def first_direction(clip, scale):
  """The first update for a gradient of norm 5 scale; large eps shows size."""
  cfg = config(
    clip=clip, eps=1e3, decay="constant", warmup_steps=0, weight_decay=0.0
  )
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  gradient = {"a": jnp.array([3.0 * scale]), "b": jnp.array([4.0 * scale])}
  optimizer = make_optimizer(cfg, STEPS)
  changes, _ = optimizer.update(gradient, optimizer.init(params), params)
  return np.concatenate([changes["a"], changes["b"]]) / -cfg.learning_rate * 1e3


def test_a_small_gradient_is_not_clipped():
  found = first_direction(clip=1.0, scale=0.1)
  np.testing.assert_allclose(found, [0.3, 0.4], rtol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_large_gradient_is_clipped_by_its_global_norm(scale):
  found = first_direction(clip=1.0, scale=scale)
  np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-2)


@pytest.mark.parametrize(
  ("step", "expected"), [(0, 1 / 10), (1, 2 / 11), (90, 0.91), (10**6, 0.99)]
)
def test_the_average_warms_up_to_its_decay(step, expected):
  ema, params = {"x": jnp.array(1.0)}, {"x": jnp.array(0.0)}
  found = update_ema(ema, params, jnp.array(step), CFG.ema_decay)["x"]
  assert found == pytest.approx(expected, rel=1e-6)


def test_the_average_of_equal_parameters_is_themselves():
  params = {"x": jnp.arange(3.0)}
  found = update_ema(params, params, jnp.array(5), CFG.ema_decay)
  np.testing.assert_allclose(found["x"], params["x"], rtol=1e-6)


def test_the_average_moves_towards_the_parameters():
  ema, params = {"x": jnp.array(0.0)}, {"x": jnp.array(1.0)}
  for step in range(200):
    ema = update_ema(ema, params, jnp.array(step), CFG.ema_decay)
  assert 0.9 < ema["x"] < 1
