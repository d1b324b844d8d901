"""Training times, and a mean over samples that packing respects."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.loss import TimeDistribution, per_sample, sizes

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


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_defaults_draw_what_they_always_did(name):
  keys = jax.random.split(jax.random.key(0), 50)
  plain = {
    "uniform": lambda key: jax.random.uniform(key),
    "logit_normal": lambda key: jax.nn.sigmoid(jax.random.normal(key)),
  }[name]
  np.testing.assert_array_equal(
    TimeDistribution(name).sample(keys), jax.vmap(plain)(keys)
  )


def test_uniform_times_may_fill_a_part():
  drawn = times(TimeDistribution("uniform", low=0.2, high=0.6))
  assert drawn.min() >= 0.2 and drawn.max() < 0.6
  np.testing.assert_allclose(
    np.quantile(drawn, QUANTILES), 0.2 + 0.4 * QUANTILES, atol=0.01
  )


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_shift_is_that_of_sampling(name, factor):
  plain, shifted = (
    times(TimeDistribution(name, shift=f), 1000) for f in (1.0, factor)
  )
  expected = schedule.shift(plain, factor)
  np.testing.assert_allclose(shifted, expected, rtol=1e-6)
  assert np.all((shifted < plain) == (factor > 1))  # Above 1 towards noise.


def test_a_third_is_the_shift_3_of_the_original():
  plain, shifted = (
    times(TimeDistribution("uniform", shift=f), 1000) for f in (1.0, 1 / 3)
  )
  np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_larger_samples_get_noisier_times(name):
  base, factor = 64, 1.5
  keys = jax.random.split(jax.random.key(0), 6).reshape(2, 3)
  tokens = np.array([[16, 64, 256], [1, 100, 4096]])
  plain = TimeDistribution(name).sample(keys)
  found = TimeDistribution(name, shift=factor, base_tokens=base).sample(
    keys, tokens
  )
  f = factor * np.sqrt(tokens / base)
  np.testing.assert_allclose(found, plain / (plain + f - f * plain), rtol=1e-5)
  of_one = jnp.broadcast_to(keys[0, 0], (5,))
  rising = TimeDistribution(name, base_tokens=base).sample(
    of_one, np.array([4, 16, 64, 256, 1024])
  )
  assert np.all(np.diff(rising) < 0)
  np.testing.assert_allclose(rising[2], plain[0, 0], rtol=1e-6)


def test_a_place_without_a_sample_gets_a_finite_time():
  keys = jax.random.split(jax.random.key(0), 100)
  distribution = TimeDistribution("uniform", base_tokens=64)
  drawn = distribution.sample(keys, np.zeros(100, int))
  assert np.all((drawn >= 0) & (drawn <= 1))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(shift=0.0), r"shift = 0\.0 must be positive"),
    (dict(shift=float("inf")), "shift = inf must be"),
    (dict(low=0.5, high=0.5), r"low = 0\.5 and high = 0\.5: 0 <= low < high"),
    (dict(high=1.5), r"high = 1\.5"),
    (
      dict(name="logit_normal", low=0.1),
      r"low = 0\.1 .*'logit_normal' has mean",
    ),
    (dict(base_tokens=-1), r"base_tokens = -1: .* 0 for one shift"),
    (dict(std=0.0), r"std = 0\.0"),
  ],
)
def test_numbers_that_make_no_distribution_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    TimeDistribution(**dict(name="uniform") | fields)


def test_sizes_are_needed_where_the_shift_goes_by_them():
  keys = jax.random.split(jax.random.key(0), 2)
  with pytest.raises(ValueError, match=r"base_tokens = 64: .*give tokens"):
    TimeDistribution("uniform", base_tokens=64).sample(keys)


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


def test_sizes_count_the_tokens_of_each_sample():
  assert sizes(SEGMENTS, N).tolist() == [[3, 2, 1, 0], [1, 6, 0, 0]]


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
