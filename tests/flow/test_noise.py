"""Noise belongs to a sample and a place in it, not to a place in a batch."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.noise import index_in_sample, sample_keys, token_noise

P = 6
KEY = jax.random.key(3)


@jax.jit
def _noise(key, sample_ids, segments):
  return token_noise(sample_keys(key, sample_ids), segments, P)


def noise(sample_ids, segments, key=KEY):
  return np.asarray(_noise(key, np.asarray(sample_ids), np.asarray(segments)))


def test_noise_is_standard_normal():
  values = noise([[5]], np.ones((1, 4000), int)).ravel()
  quantiles = (0.01, 0.1, 0.5, 0.9, 0.99)
  expected = [NormalDist().inv_cdf(q) for q in quantiles]
  np.testing.assert_allclose(np.quantile(values, quantiles), expected, atol=0.1)
  np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.03)


def test_noise_of_tokens_and_channels_is_uncorrelated():
  values = noise([[5]], np.ones((1, 4000), int))[0]
  correlation = np.corrcoef(values.T)
  np.testing.assert_allclose(correlation, np.eye(P), atol=0.08)
  neighbours = np.corrcoef(values[1:].ravel(), values[:-1].ravel())
  assert abs(neighbours[0, 1]) < 0.04


@pytest.mark.parametrize(
  ("sample_ids", "segments", "place"),
  [
    ([[7]], [[1, 1, 1]], np.s_[0, :3]),
    ([[7]], [[1, 1, 1, 0, 0]], np.s_[0, :3]),
    ([[7, 4]], [[1, 1, 1, 2, 2, 0]], np.s_[0, :3]),
    ([[4, 7]], [[1, 1, 2, 2, 2, 0]], np.s_[0, 2:5]),
    ([[4, 5], [1, 7]], [[1, 2, 2, 0, 0], [1, 2, 2, 2, 0]], np.s_[1, 1:4]),
    ([[4, 5, 7]], [[1, 1, 3, 3, 3, 0]], np.s_[0, 2:5]),
  ],
)
def test_moving_a_sample_leaves_its_noise_unchanged(
  sample_ids, segments, place
):
  alone = noise([[7]], [[1, 1, 1]])[0]
  np.testing.assert_array_equal(noise(sample_ids, segments)[place], alone)


def test_a_longer_sample_begins_with_the_noise_of_a_shorter():
  short, long = noise([[7]], [[1] * 4]), noise([[7]], [[1] * 9])
  np.testing.assert_array_equal(long[:, :4], short)


def test_other_samples_tokens_and_keys_have_other_noise():
  values = noise([[7, 8]], [[1, 1, 1, 2, 2, 2]])[0]
  other = noise([[7]], [[1, 1, 1]], key=jax.random.key(4))[0]
  everything = np.concatenate([values, other]).ravel()
  assert len(np.unique(everything)) == everything.size


def test_sample_keys_depend_on_key_and_id_only():
  few, many = sample_keys(KEY, jnp.array([[7]])), jnp.array([[1, 2], [7, 3]])
  data = jax.random.key_data
  assert jnp.array_equal(data(sample_keys(KEY, many)[1, 0]), data(few[0, 0]))
  assert (
    len(np.unique(data(sample_keys(KEY, many)).reshape(4, -1), axis=0)) == 4
  )


def test_index_in_sample_counts_from_the_start_of_each_sample():
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 2, 2, 2, 2, 2]])
  expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 4]]
  assert index_in_sample(segments).tolist() == expected
