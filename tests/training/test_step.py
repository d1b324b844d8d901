"""The step: microbatches, and updates that are not finite."""

import functools

import jax
import numpy as np
import optax
import pytest
from support.configs import small_config

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import data
from lumina_jax.training import step as steps
from lumina_jax.training.gradient import TIME_BINS, flow_gradient, flow_loss
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state


@functools.cache
def run():
  """A config, its batch 0, and random parameters."""
  config = small_config(training__steps=9, training__batch_rows=8)
  shapes = config.network.shapes()
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), shapes
  )
  return config, data.make_batches(config).batch(0), params


@functools.cache
def gradient(microbatches):
  config, batch, params = run()
  return jax.jit(
    lambda p, b: flow_gradient(
      config.network, p, b, config.time, jax.random.key(3), microbatches
    )
  )(params, batch)


@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatches):
  """Though rows hold unequal numbers of samples."""
  _, (tokens, _), _ = run()
  assert len(set(tokens.segments.max(axis=1))) > 1
  (whole, values), (parts, summed) = gradient(1), gradient(microbatches)
  scale = float(optax.tree.norm(whole))
  difference = jax.tree.map(lambda a, b: a - b, whole, parts)
  assert float(optax.tree.norm(difference)) < 1e-5 * scale
  for name in values:
    np.testing.assert_allclose(summed[name], values[name], rtol=1e-5)


def test_losses_by_time_are_those_of_the_samples():
  config, batch, params = run()
  flow = jax.jit(
    lambda p, b: flow_loss(config.network, p, b, config.time, jax.random.key(3))
  )(params, batch)
  loss, exists, times = (np.asarray(x) for x in flow[:3])
  _, values = gradient(1)
  for number in range(TIME_BINS):
    low, high = number / TIME_BINS, (number + 1) / TIME_BINS
    inside = exists & (times >= low) & (times < high)
    assert values["samples_by_time"][number] == inside.sum()
    np.testing.assert_allclose(
      values["loss_by_time"][number], loss[inside].sum(), rtol=1e-4
    )
  assert values["samples"] == exists.sum() == values["samples_by_time"].sum()


@functools.cache
def compiled():
  config, batch, _ = run()
  mesh = make_mesh(config.mesh)
  tx = make_optimizer(config.optimizer, config.training.steps)
  with jax.set_mesh(mesh):
    step = steps.jit_train_step(
      steps.train_step_for(config, tx), config.network, tx, mesh, batch
    )

  def advance(state, batch):
    with jax.set_mesh(mesh):
      return step(state, steps.place_batch(batch, mesh))

  def fresh():
    with jax.set_mesh(mesh):
      return create_state(config.network, tx, mesh, 0)

  return advance, fresh


def broken(batch):
  tokens, condition = batch
  patches = tokens.patches.copy()
  patches[0, 0, 0] = np.nan
  return tokens._replace(patches=patches), condition


def copied(state):
  return jax.tree.map(np.array, state)


def test_an_update_that_is_not_finite_changes_nothing_but_counts():
  advance, fresh = compiled()
  _, batch, _ = run()
  state, values = advance(fresh(), batch)
  assert values["finite"] and values["learning_rate"] == 0
  before = copied(state)
  state, values = advance(state, broken(batch))
  assert not values["finite"]
  after = copied(state)
  assert (after.step, after.skipped) == (2, 1)
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
    )


def test_what_comes_after_a_skipped_update_counts_it_not():
  """Learning rate and average go by updates; data and noise by batches."""
  advance, fresh = compiled()
  _, batch, _ = run()
  state, _ = advance(fresh(), batch)
  state, _ = advance(state, broken(batch))
  skipped, values = advance(state, batch)
  plain, _ = advance(fresh(), batch)
  plain, second = advance(plain, batch)
  assert values["learning_rate"] == second["learning_rate"] > 0
  assert int(skipped.step) == 3 and int(plain.step) == 2
  assert values["loss"] != second["loss"]  # Noise of step 2, not of step 1.
