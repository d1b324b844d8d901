"""The load-balancing loss: part of the objective only where it has weight."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import optax
import pytest
from etils import epath
from support.configs import tiny_config

from lumina_jax import train as training
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import Objective
from lumina_jax.tokens import Condition, Tokens
from lumina_jax.training import metrics
from lumina_jax.training import step as steps
from lumina_jax.training.state import TrainState

RATE = 0.1


class Network:
  """Predicts a x; balance b, which nothing else depends on."""

  objective = Objective()

  def __init__(self, weight):
    self.model = types.SimpleNamespace(balance_weight=weight)

  def encode(self, params, condition):
    return condition

  def prediction(self, params, tokens, condition):
    assert not self.model.balance_weight
    return params["a"] * tokens.patches

  def prediction_and_balance(self, params, tokens, condition):
    assert self.model.balance_weight
    return params["a"] * tokens.patches, params["b"]


def step(weight):
  """Parameters and metrics after one step from a = b = 1."""
  ones = jnp.ones((2, 3), jnp.int32)
  tokens = Tokens(jnp.ones((2, 3, 4)), ones[..., None], 0 * ones, ones)
  condition = Condition(sample_ids=jnp.arange(2)[:, None])
  tx = optax.sgd(RATE)
  times = TimeDistribution("uniform")
  params = {"a": jnp.ones(()), "b": jnp.ones(())}
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, zero, params, params, tx.init(params))
  update = steps.make_train_step(Network(weight), tx, times, 0.9, seed=0)
  state, values = jax.jit(update)(state, (tokens, condition))
  return state.params, values


def test_it_is_added_with_its_weight_and_reported_beside_the_loss():
  (plain, without), (params, values) = step(0.0), step(0.5)
  assert values.keys() == without.keys() | {"balance"}
  assert values["loss"] == without["loss"] and values["balance"] == 1
  assert params["a"] == plain["a"] != 1
  assert plain["b"] == 1
  assert params["b"] == pytest.approx(1 - 0.5 * RATE)


@pytest.mark.slow
@pytest.mark.long
def test_experts_train_with_it(tmp_path):
  config = tiny_config("imagenet")
  model = dataclasses.replace(
    config.model,
    routing=("time", "token"),
    experts=4,
    active_experts=2,
    balance_weight=0.01,
  )
  config = dataclasses.replace(config, model=model)
  training.train(config, epath.Path(tmp_path))
  for row in metrics.read(tmp_path):
    assert 0.5 < row["balance"] <= 4  # 1 = alike, 4 = one expert does all.
