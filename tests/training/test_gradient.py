"""The loss of a batch and its gradient: packing, microbatches, balance."""

import functools

import jax
import numpy as np
import optax
import pytest
from support.configs import small_config
from support.networks import AffineNetwork

from lumina_jax import packing
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import Objective
from lumina_jax.training import data
from lumina_jax.training.gradient import TIME_BINS, flow_gradient, flow_loss

UNIFORM = TimeDistribution("uniform")
PARAMS = {"a": 0.3, "b": -0.2, "c": 0.1, "d": 0.7}


@pytest.fixture(scope="module")
def packed():
  """A real batch of eight rows with samples of several sizes side by side."""
  return data.make_batches(small_config()).batch(0)


def loss_of(batch, objective=None, times=UNIFORM):
  key = jax.random.key(5)
  return flow_loss(AffineNetwork(objective), PARAMS, batch, times, key)


@functools.cache
def gradient_function(microbatches, balance_weight=0.0):
  network = AffineNetwork(balance_weight=balance_weight)
  return jax.jit(
    lambda params, batch: flow_gradient(
      network, params, batch, UNIFORM, jax.random.key(3), microbatches
    )
  )


@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(
  packed, microbatches
):
  """Though rows hold different numbers of samples."""
  assert len(set(packed[0].segments.max(axis=1))) > 1
  whole, parts = (
    gradient_function(count, 0.5)(PARAMS, packed) for count in (1, microbatches)
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), whole, parts
  )


@pytest.mark.e2e
def test_microbatches_of_a_transformer(packed):
  config = small_config()
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.1 * rng.standard_normal(x.shape, np.float32),
    config.network.shapes(),
  )

  def gradient(microbatches):
    return jax.jit(
      lambda params, batch: flow_gradient(
        config.network,
        params,
        batch,
        config.time,
        jax.random.key(3),
        microbatches,
      )
    )(params, packed)

  (whole, values), (parts, summed) = gradient(1), gradient(4)
  difference = jax.tree.map(lambda a, b: a - b, whole, parts)
  assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(whole)
  for name in values:
    np.testing.assert_allclose(summed[name], values[name], rtol=1e-5)


def test_losses_by_time_are_those_of_the_samples(packed):
  key = jax.random.key(3)
  flow = flow_loss(AffineNetwork(), PARAMS, packed, UNIFORM, key)
  loss, exists, times = (np.asarray(x) for x in flow[:3])
  _, values = gradient_function(1)(PARAMS, packed)
  for number in range(TIME_BINS):
    low, high = number / TIME_BINS, (number + 1) / TIME_BINS
    inside = exists & (times >= low) & (times < high)
    assert values["samples_by_time"][number] == inside.sum()
    np.testing.assert_allclose(
      values["loss_by_time"][number], loss[inside].sum(), rtol=1e-4
    )
  assert values["samples"] == exists.sum() == values["samples_by_time"].sum()


def test_the_balance_loss_is_added_with_its_weight_and_reported(packed):
  (plain, without), (grads, values) = (
    gradient_function(1, weight)(PARAMS, packed) for weight in (0.0, 0.5)
  )
  assert values.keys() == without.keys() | {"balance"}
  assert values["loss"] == without["loss"]
  assert values["balance"] == pytest.approx(PARAMS["d"])
  assert grads["a"] == plain["a"] != 0
  assert plain["d"] == 0 and grads["d"] == pytest.approx(0.5)


def single(batch, row, slot):
  """One sample of a batch in a row of its own."""
  tokens, condition = batch
  inside = tokens.segments[row] == slot + 1
  leaves = [np.asarray(leaf)[row, inside] for leaf in tokens]
  ones = np.ones(inside.sum(), np.int32)
  return (
    packing.stack([type(tokens)(*leaves)._replace(segments=ones)]),
    type(condition)(sample_ids=condition.sample_ids[row, slot].reshape(1, 1)),
  )


@pytest.mark.parametrize("words", [("vp", "score"), ("linear", "velocity")])
def test_packing_changes_no_loss_and_no_time(words, packed):
  objective = Objective(*words, "likelihood")
  times = TimeDistribution("logit_normal", shift=1.5, base_tokens=8)
  together = loss_of(packed, objective, times)
  places = np.argwhere(np.asarray(together.exists))[::13]
  sizes = {int((packed[0].segments[b] == n + 1).sum()) for b, n in places}
  assert len(sizes) > 1
  for row, slot in places:
    alone = loss_of(single(packed, row, slot), objective, times)
    assert alone.times[0, 0] == together.times[row, slot]
    np.testing.assert_allclose(
      alone.loss[0, 0], together.loss[row, slot], rtol=1e-5
    )


def test_larger_samples_train_nearer_to_noise(packed):
  """The same keys, with and without the rule."""
  plain = loss_of(packed).times
  by_size = loss_of(packed, times=TimeDistribution("uniform", base_tokens=8))
  numbers = np.arange(1, plain.shape[1] + 1)
  tokens = (np.asarray(packed[0].segments)[..., None] == numbers).sum(1)
  t, f = np.asarray(plain), np.sqrt(np.maximum(tokens, 1) / 8)
  np.testing.assert_allclose(by_size.times, t / (t + f - f * t), rtol=1e-5)
  assert np.any(tokens > 8)
  assert np.all((by_size.times < plain)[tokens > 8])
