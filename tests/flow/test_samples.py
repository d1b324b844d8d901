"""Layouts of samples: packed rows, batches, a single sample."""

import numpy as np

from lumina_jax.flow.samples import SINGLE, batch, masked_batch, rows

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 0]])
SEPARATORS = np.array([[0, 0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]])
REAL = (SEGMENTS > 0) & (SEPARATORS == 0)
X = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)


def test_rows_spread_by_segment():
  values = np.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
  spread = np.broadcast_to(rows(SEGMENTS, REAL, 3).spread(values), X.shape)
  for b in range(2):
    for token, segment in enumerate(SEGMENTS[b].tolist()):
      if segment:
        assert (spread[b, token] == values[b, segment - 1]).all()


def test_rows_average_over_the_real_tokens_of_each_sample():
  means = rows(SEGMENTS, REAL, 4).mean(X)
  for b in range(2):
    for n in range(4):
      own = (SEGMENTS[b] == n + 1) & REAL[b]
      expected = X[b, own].mean() if own.any() else 0
      np.testing.assert_allclose(means[b, n], expected, atol=1e-6)


def test_one_sample_a_row_is_a_broadcast():
  layout = rows(np.ones((2, 8), int), np.ones((2, 8), bool), 1)
  assert layout.spread(np.ones((2, 1))).shape == (2, 1, 1)
  np.testing.assert_allclose(layout.mean(X)[:, 0], X.mean((1, 2)), atol=1e-6)


def test_batches_and_single_samples():
  values = np.array([1.0, 2.0])
  assert batch(X).spread(values).shape == (2, 1, 1)
  np.testing.assert_allclose(batch(X).mean(X), X.mean((1, 2)), atol=1e-6)
  assert SINGLE.spread(3.0) == 3.0
  np.testing.assert_allclose(SINGLE.mean(X), X.mean(), atol=1e-6)


def test_a_masked_batch_averages_where_the_mask_holds():
  mask = np.arange(40).reshape(8, 5) < np.array([7, 0])[:, None, None]
  expected = X[0].ravel()[:7].mean(), 0
  np.testing.assert_allclose(masked_batch(mask).mean(X), expected, atol=1e-6)


def test_select_keeps_or_restores_the_memory_of_each_sample():
  keep, new, old = np.array([True, False]), np.ones((2, 3)), np.zeros((2, 3))
  found = batch(X).select(keep, {"a": new}, {"a": old})["a"]
  np.testing.assert_array_equal(found, [[1] * 3, [0] * 3])
  both = batch(X).select(keep, np.ones((4, 3)), np.zeros((4, 3)))
  np.testing.assert_array_equal(both[:, 0], [1, 0, 1, 0])  # Of both branches.
  each = np.array([True, True, True, False])
  both = batch(X).select(each, np.ones(4), np.zeros(4))
  np.testing.assert_array_equal(both, each)
  assert SINGLE.select(np.bool_(False), 1, 2) == 2
  assert batch(X).select(keep, old, old) is old
