"""Training times, and losses per sample that packing does not change."""

import functools
from statistics import NormalDist

import jax
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.loss import (
  TimeDistribution,
  per_sample_loss,
  token_counts,
)

QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


@functools.cache
def keys():
  return jax.random.split(jax.random.key(0), 20_000)


@functools.partial(jax.jit, static_argnums=0)
def sample(distribution, keys, tokens=None):
  return distribution.sample(keys, tokens)


def times(distribution):
  return np.asarray(sample(distribution, keys()))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 2.0), (1.0, 0.5)])
def test_logit_normal_is_the_sigmoid_of_a_normal(mean, std):
  found = times(TimeDistribution("logit_normal", mean, std))
  logits = np.log(found / (1 - found))
  expected = [NormalDist(mean, std).inv_cdf(q) for q in QUANTILES]
  np.testing.assert_allclose(
    np.quantile(logits, QUANTILES), expected, atol=0.06 * std
  )


def test_uniform_times_fill_the_unit_interval():
  found = times(TimeDistribution("uniform"))
  assert found.min() >= 0
  assert found.max() < 1
  np.testing.assert_allclose(
    np.quantile(found, QUANTILES), QUANTILES, atol=0.02
  )


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_a_time_depends_on_its_key_only(name):
  distribution = TimeDistribution(name)
  found = np.asarray(sample(distribution, keys()[:6]))
  moved = sample(distribution, keys()[:6][::-1].reshape(2, 3))
  np.testing.assert_array_equal(moved, found[::-1].reshape(2, 3))
  assert len(np.unique(found)) == 6


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_defaults_are_the_plain_distributions(name):
  plain = {
    "uniform": lambda key: jax.random.uniform(key),
    "logit_normal": lambda key: jax.nn.sigmoid(jax.random.normal(key)),
  }[name]
  np.testing.assert_allclose(
    sample(TimeDistribution(name), keys()[:50]),
    jax.vmap(plain)(keys()[:50]),
    rtol=1e-6,
  )


def test_uniform_times_may_fill_a_part():
  found = times(TimeDistribution("uniform", low=0.2, high=0.6))
  assert found.min() >= 0.2 and found.max() < 0.6
  np.testing.assert_allclose(
    np.quantile(found, QUANTILES), 0.2 + 0.4 * QUANTILES, atol=0.01
  )


@pytest.mark.parametrize(
  ("name", "factor"), [("uniform", 1 / 3), ("logit_normal", 3.0)]
)
def test_a_shift_is_that_of_sampling(name, factor):
  plain, shifted = (
    times(TimeDistribution(name, shift=f)) for f in (1.0, factor)
  )
  expected = schedule.shift(plain, factor)
  np.testing.assert_allclose(shifted, expected, rtol=1e-6)
  assert np.all((shifted < plain) == (factor > 1))  # Above 1 towards noise.
  if factor < 1:  # The shift_3 of the original.
    np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_larger_samples_get_noisier_times(name):
  base, factor, some = 64, 1.5, keys()[:6].reshape(2, 3)
  tokens = np.array([[16, 64, 256], [1, 100, 4096]])
  plain = np.asarray(sample(TimeDistribution(name), some))
  shifted = TimeDistribution(name, shift=factor, base_tokens=base)
  found = sample(shifted, some, tokens)
  f = factor * np.sqrt(tokens / base)
  np.testing.assert_allclose(found, plain / (plain + f - f * plain), rtol=1e-5)
  same = np.zeros(6, int)  # One key for all.
  tokens = np.array([4, 16, 64, 256, 1024, 1024])
  rising = sample(shifted, keys()[same].reshape(2, 3), tokens.reshape(2, 3))
  assert np.all(np.diff(np.ravel(rising))[:4] < 0)


def test_empty_slots_get_finite_times():
  distribution = TimeDistribution("uniform", base_tokens=64)
  found = np.asarray(sample(distribution, keys()[:100], np.zeros(100, int)))
  assert np.all((found >= 0) & (found <= 1))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(name="lognorm"), r"'lognorm'.*'logit_normal'"),
    (dict(shift=0.0), r"shift = 0\.0 must be positive"),
    (dict(shift=float("inf")), "shift = inf must be"),
    (dict(low=0.5, high=0.5), r"low = 0\.5 and high = 0\.5: 0 <= low < high"),
    (dict(high=1.5), r"high = 1\.5"),
    (
      dict(name="logit_normal", low=0.1),
      r"low = 0\.1 .*'logit_normal' takes mean",
    ),
    (dict(base_tokens=-1), r"base_tokens = -1: .* 0 for the same shift"),
    (dict(std=0.0), r"std = 0\.0"),
  ],
)
def test_invalid_distributions_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    TimeDistribution(**dict(name="uniform") | fields)


def test_a_shift_by_size_needs_sizes():
  with pytest.raises(ValueError, match=r"base_tokens = 64: .*pass tokens"):
    TimeDistribution("uniform", base_tokens=64).sample(keys()[:2])


SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 0]])
SEPARATORS = np.array([[0, 0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]])
REAL = (SEGMENTS > 0) & (SEPARATORS == 0)
ERROR = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
N = 4


@jax.jit
def losses(error):
  return per_sample_loss(error, REAL, SEGMENTS, N)


@functools.cache
def packed():
  """Losses of ERROR, and which slots hold a sample."""
  return tuple(map(np.asarray, losses(ERROR)))


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


def test_losses_equal_a_loop_over_samples():
  found, exists = packed()
  np.testing.assert_allclose(found, by_hand(ERROR), rtol=1e-6)
  assert exists.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2]


def test_token_counts_include_separators():
  assert token_counts(SEGMENTS, N).tolist() == [[3, 2, 1, 0], [1, 6, 0, 0]]


def test_padding_and_separators_do_not_count():
  found, exists = losses(np.where(REAL[..., None], ERROR, np.float32(1e6)))
  np.testing.assert_array_equal(found, packed()[0])
  np.testing.assert_array_equal(exists, packed()[1])
  grad = jax.jit(jax.grad(lambda error: losses(error)[0].sum()))(ERROR)
  np.testing.assert_array_equal(np.any(grad != 0, axis=-1), REAL)


@pytest.mark.parametrize(("row", "number"), [(0, 1), (1, 2)])
def test_packed_equals_unpacked(row, number):
  own = SEGMENTS[row] == number
  alone, _ = jax.jit(per_sample_loss, static_argnums=3)(
    ERROR[row, own][None], REAL[row, own][None], np.ones((1, own.sum())), 1
  )
  expected = packed()[0][row, number - 1]
  np.testing.assert_allclose(alone[0, 0], expected, rtol=1e-6)


def test_losses_are_float32():
  error = ERROR.astype("bfloat16")
  found, _ = losses(error)
  assert found.dtype == np.float32
  expected = by_hand(error.astype(np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
