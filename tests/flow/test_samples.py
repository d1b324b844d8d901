"""Values of samples against states: packed rows, batches, one alone."""

import jax.numpy as jnp
import numpy as np

from lumina_jax.flow.samples import TOGETHER, batch, rows

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 0]])
SEPARATORS = np.array([[0, 0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]])
REAL = (SEGMENTS > 0) & (SEPARATORS == 0)
X = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)


def test_rows_spread_by_segment():
  values = jnp.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
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
  of = rows(jnp.ones((2, 8), int), jnp.ones((2, 8), bool), 1)
  assert of.spread(jnp.ones((2, 1))).shape == (2, 1, 1)
  np.testing.assert_allclose(of.mean(X)[:, 0], X.mean((1, 2)), atol=1e-6)


def test_batches_and_one_alone():
  values = jnp.array([1.0, 2.0])
  assert batch(X).spread(values).shape == (2, 1, 1)
  np.testing.assert_allclose(batch(X).mean(X), X.mean((1, 2)), atol=1e-6)
  assert TOGETHER.spread(3.0) == 3.0
  np.testing.assert_allclose(TOGETHER.mean(X), X.mean(), atol=1e-6)
