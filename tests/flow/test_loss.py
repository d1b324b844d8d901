"""Training times, and a mean over samples that packing respects."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.loss import TimeDistribution, per_sample

QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def times(distribution, count=20_000):
  keys = jax.random.split(jax.random.key(0), count)
  return np.asarray(distribution.sample(keys))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 2.0), (1.0, 0.5)])
def test_logit_normal_is_the_sigmoid_of_a_normal(mean, std):
  drawn = times(TimeDistribution("logit_normal", mean, std))
  logits = np.log(drawn / (1 - drawn))
  expected = [NormalDist(mean, std).inv_cdf(q) for q in QUANTILES]
  np.testing.assert_allclose(
    np.quantile(logits, QUANTILES), expected, atol=0.06 * std
  )


def test_uniform_times_fill_the_unit_interval():
  drawn = times(TimeDistribution("uniform"))
  assert drawn.min() >= 0
  assert drawn.max() < 1
  np.testing.assert_allclose(
    np.quantile(drawn, QUANTILES), QUANTILES, atol=0.02
  )


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_a_time_depends_on_its_key_only(name):
  distribution = TimeDistribution(name)
  keys = jax.random.split(jax.random.key(1), 6)
  drawn = distribution.sample(keys)
  np.testing.assert_array_equal(
    distribution.sample(keys[::-1].reshape(2, 3)), drawn[::-1].reshape(2, 3)
  )
  assert len(np.unique(drawn)) == 6


def test_an_unknown_distribution_is_refused():
  with pytest.raises(ValueError, match=r"'lognorm'.*'logit_normal'"):
    TimeDistribution("lognorm")


SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 0]])
SEPARATORS = np.array([[0, 0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]])
REAL = (SEGMENTS > 0) & (SEPARATORS == 0)
ERROR = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
N = 4


def by_hand(error):
  losses = np.zeros((2, N))
  for b in range(2):
    for n in range(N):
      own = [
        np.mean(error[b, token] ** 2)
        for token in range(8)
        if SEGMENTS[b, token] == n + 1 and REAL[b, token]
      ]
      losses[b, n] = np.mean(own) if own else 0
  return losses


def test_per_sample_equals_a_loop_over_samples():
  losses, exists = per_sample(ERROR, REAL, SEGMENTS, N)
  np.testing.assert_allclose(losses, by_hand(ERROR), rtol=1e-6)
  assert exists.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2]


def test_padding_and_separators_do_not_count():
  garbage = np.where(REAL[..., None], ERROR, 1e6)
  losses, exists = per_sample(ERROR, REAL, SEGMENTS, N)
  with_garbage, same = per_sample(garbage, REAL, SEGMENTS, N)
  np.testing.assert_array_equal(with_garbage, losses)
  np.testing.assert_array_equal(same, exists)


def test_padding_and_separators_get_no_gradient():
  grad = jax.grad(lambda e: per_sample(e, REAL, SEGMENTS, N)[0].sum())(ERROR)
  assert np.array_equal(np.any(grad != 0, axis=-1), REAL)


@pytest.mark.parametrize(("row", "number"), [(0, 1), (0, 2), (0, 3), (1, 2)])
def test_packed_equals_unpacked(row, number):
  packed, _ = per_sample(ERROR, REAL, SEGMENTS, N)
  own = SEGMENTS[row] == number
  alone, _ = per_sample(
    ERROR[row, own][None], REAL[row, own][None], np.ones((1, own.sum())), 1
  )
  np.testing.assert_allclose(alone[0, 0], packed[row, number - 1], rtol=1e-6)


def test_losses_are_float32():
  error = jnp.asarray(ERROR, jnp.bfloat16)
  losses, _ = per_sample(error, REAL, SEGMENTS, N)
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(
    losses, by_hand(np.asarray(error, np.float32)), rtol=1e-6
  )
