"""Noise depends on a sample and a place in it, not on a place in a batch."""

import functools
from statistics import NormalDist

import jax
import numpy as np
import pytest

from lumina_jax.flow.noise import index_in_sample, sample_keys, token_noise

P = 6


@jax.jit
def _noise(key, sample_ids, segments):
  return token_noise(sample_keys(key, sample_ids), segments, P)


def noise(sample_ids, segments, seed=3):
  key = jax.random.key(seed)
  return np.asarray(_noise(key, np.asarray(sample_ids), np.asarray(segments)))


def test_noise_is_standard_normal_and_uncorrelated():
  values = noise([[5]], np.ones((1, 4000), int))[0]
  quantiles = (0.01, 0.1, 0.5, 0.9, 0.99)
  expected = [NormalDist().inv_cdf(q) for q in quantiles]
  np.testing.assert_allclose(np.quantile(values, quantiles), expected, atol=0.1)
  np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.03)
  correlation = np.corrcoef(values.T)
  np.testing.assert_allclose(correlation, np.eye(P), atol=0.08)
  neighbours = np.corrcoef(values[1:].ravel(), values[:-1].ravel())
  assert abs(neighbours[0, 1]) < 0.04


@functools.cache
def alone():
  return noise([[7]], [[1, 1, 1]])[0]


@pytest.mark.parametrize(
  ("sample_ids", "segments", "place"),
  [
    ([[7, 0], [0, 0]], [[1, 1, 1, 0, 0, 0], [0] * 6], np.s_[0, :3]),
    ([[7, 4], [0, 0]], [[1, 1, 1, 2, 2, 0], [0] * 6], np.s_[0, :3]),
    ([[4, 7], [0, 0]], [[1, 1, 2, 2, 2, 0], [0] * 6], np.s_[0, 2:5]),
    (
      [[4, 5], [1, 7]],
      [[1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 0, 0]],
      np.s_[1, 1:4],
    ),
    ([[4, 5, 7]], [[1, 1, 3, 3, 3, 0]], np.s_[0, 2:5]),
  ],
)
def test_moving_a_sample_leaves_its_noise_unchanged(
  sample_ids, segments, place
):
  np.testing.assert_array_equal(noise(sample_ids, segments)[place], alone())


def test_a_longer_sample_begins_with_the_noise_of_a_shorter():
  longer = noise([[7, 4], [0, 0]], [[1] * 6, [0] * 6])
  np.testing.assert_array_equal(longer[0, :3], alone())


def test_other_samples_tokens_and_keys_have_other_noise():
  values = noise([[7, 8], [9, 9]], [[1, 1, 1, 2, 2, 2], [1] * 6]).ravel()
  other = noise([[7]], [[1, 1, 1]], seed=4).ravel()
  everything = np.concatenate([values, other])
  assert len(np.unique(everything)) == everything.size


def test_sample_keys_depend_on_key_and_id_only():
  key = jax.random.key(3)
  keys = jax.jit(lambda ids: jax.random.key_data(sample_keys(key, ids)))
  few, many = keys(np.array([[7]])), keys(np.array([[1, 2], [7, 3]]))
  np.testing.assert_array_equal(many[1, 0], few[0, 0])
  assert len(np.unique(np.reshape(many, (4, -1)), axis=0)) == 4


def test_index_in_sample_counts_from_the_start_of_each_sample():
  segments = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 2, 2, 2, 2, 2]])
  expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 4]]
  assert jax.jit(index_in_sample)(segments).tolist() == expected
