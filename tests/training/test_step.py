"""The training step: objectives, skipped updates, one shape for all batches."""

import functools

import jax
import numpy as np
import optax
import pytest
from support.configs import small_config
from support.networks import AffineNetwork

from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import Objective
from lumina_jax.training import data
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.schedule import make_schedule
from lumina_jax.training.state import TrainState
from lumina_jax.training.step import make_train_step

UNIFORM = TimeDistribution("uniform")
# Each path, prediction and weight at least once; tests/flow has all products.
OBJECTIVES = (
  ("linear", "velocity", "none"),
  ("linear", "noise", "likelihood"),
  ("gvp", "score", "velocity"),
  ("gvp", "data", "none"),
  ("vp", "data", "likelihood"),
  ("vp", "velocity", "velocity"),
)


@pytest.fixture(scope="module")
def batch():
  return data.make_batches(small_config()).batch(0)


def new_state(tx):
  params, zero = AffineNetwork.params(), np.int32(0)
  return TrainState(zero, zero, params, params, tx.init(params))


@pytest.mark.parametrize("words", OBJECTIVES, ids="-".join)
def test_steps_are_finite_and_move(words, batch):
  tx = optax.adam(1e-2)
  network = AffineNetwork(Objective(*words))
  # Not jitted, so that all objectives share what is compiled.
  step = make_train_step(network, tx, UNIFORM, 0.9, seed=0)
  state = new_state(tx)
  for _ in range(2):
    state, metrics = step(state, batch)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert metrics["grad_norm"] > 0
  moved = (state.params[name] for name in "abc")
  assert all(np.isfinite(x) and x != 0 for x in moved)


def test_weights_of_a_plain_objective_leave_no_trace(batch):
  tx = optax.sgd(0.1)

  def program(objective):
    step = make_train_step(AffineNetwork(objective), tx, UNIFORM, 0.9, seed=0)
    return jax.jit(step).lower(new_state(tx), batch).as_text()

  assert program(Objective()) == program(Objective(weight="velocity"))
  assert program(Objective()) != program(Objective(weight="likelihood"))


@functools.cache
def real_optimizer():
  """A step of a small network with the optimizer of a run."""
  config = small_config()
  cfg, steps = config.optimizer, config.training.steps
  tx = make_optimizer(cfg, steps)
  schedule = make_schedule(cfg, steps)
  step = make_train_step(
    AffineNetwork(), tx, UNIFORM, 0.9, seed=0, schedule=schedule
  )
  return jax.jit(step), new_state(tx)


def corrupt(batch):
  tokens, condition = batch
  patches = tokens.patches.copy()
  patches[0, 0, 0] = np.nan
  return tokens._replace(patches=patches), condition


def test_an_update_that_is_not_finite_changes_nothing_but_counts(batch):
  step, state = real_optimizer()
  before, metrics = step(state, batch)
  assert metrics["finite"] and metrics["learning_rate"] == 0
  before, _ = step(before, batch)
  after, metrics = step(before, corrupt(batch))
  assert not metrics["finite"]
  assert (after.step, after.skipped) == (3, 1)
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
    )


def test_learning_rate_and_average_ignore_skipped_updates(batch):
  """Data and noise go by batches."""
  step, start = real_optimizer()
  once, _ = step(start, batch)
  skipped, _ = step(once, corrupt(batch))
  skipped, metrics = step(skipped, batch)
  plain, second = step(once, batch)
  assert metrics["learning_rate"] == second["learning_rate"] > 0
  assert int(skipped.step) == 3 and int(plain.step) == 2
  assert metrics["loss"] != second["loss"]  # Noise of step 2, not of step 1.


@pytest.mark.parametrize(
  ("variant", "sizes"),
  [("next", {4, 8, 12, 16}), ("flag", {6, 10, 12, 14, 18, 20})],
)
def test_batches_of_all_canvas_sizes_have_one_shape(variant, sizes):
  """So one compiled step, which accepts one shape only, trains them all."""
  batches = data.make_batches(small_config(variant))
  shapes, packings = set(), set()
  for i in range(4):
    batch = batches.batch(i)
    shapes.add(tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch)))
    packings |= {tuple(np.bincount(r)[1:]) for r in batch[0].segments}
  assert len(shapes) == 1
  assert len(packings) > 4 and set().union(*packings) == sizes
