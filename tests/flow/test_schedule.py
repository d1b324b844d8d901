"""Time grids from noise to data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule

FACTORS = (0.25, 1.0, 3.0, 3.3, 4.0, 12.0)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_uniform_has_equal_steps_from_0_to_1(steps):
  times = schedule.uniform(steps)
  np.testing.assert_allclose(times, np.arange(steps + 1) / steps, atol=1e-6)
  assert times[0] == 0
  assert times[-1] == 1


@pytest.mark.parametrize("factor", FACTORS)
def test_shift_keeps_the_ends(factor):
  ends = schedule.shift(jnp.array([0.0, 1.0]), factor)
  assert ends.tolist() == [0, 1]


@pytest.mark.parametrize("factor", FACTORS)
def test_shift_is_monotone(factor):
  times = schedule.shift(schedule.uniform(50), factor)
  assert jnp.all(jnp.diff(times) > 0)


def test_shift_4_equals_the_reference():
  times = jnp.array([0.1, 0.25, 0.5, 0.75, 0.9])
  expected = [0.0270, 0.0769, 0.2, 0.4286, 0.6923]
  np.testing.assert_allclose(schedule.shift(times, 4.0), expected, atol=5e-5)


def test_shift_1_changes_nothing():
  times = schedule.uniform(9)
  np.testing.assert_allclose(schedule.shift(times, 1.0), times, rtol=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
def test_shift_is_that_of_diffusers_in_noise_levels(factor):
  times = schedule.uniform(9)
  sigma = 1 - times
  expected = factor * sigma / (1 + (factor - 1) * sigma)
  np.testing.assert_allclose(
    1 - schedule.shift(times, factor), expected, atol=1e-6
  )


def test_the_factor_may_be_traced():
  times = schedule.uniform(5)
  compiled = jax.jit(schedule.shift)
  np.testing.assert_allclose(
    compiled(times, 4.0), schedule.shift(times, 4.0), rtol=1e-6
  )


def test_the_sigmoid_equals_its_notes():
  """Of ten steps, as the reconstruction of the paper's figure has them."""
  expected = [0, 0.021, 0.058, 0.118, 0.211, 0.337, 0.487, 0.878, 0.982, 0.998]
  found = schedule.sigmoid(10)
  np.testing.assert_allclose(found, [*expected, 1], atol=5e-4)


@pytest.mark.parametrize("center", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("late", [6.0, 20.0])
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_the_sigmoid_rises_from_0_to_1(steps, center, late):
  times = schedule.sigmoid(steps, center, 6.0, late)
  assert len(times) == steps + 1
  assert times[0] == 0 and times[-1] == 1
  assert jnp.all(jnp.diff(times) > 0)


def test_the_shift_of_a_size_is_the_root_of_its_tokens():
  assert schedule.by_tokens(4096, 1024) == 2
  assert schedule.by_tokens(1024, 1024) == 1


def test_unknown_names_get_near_ones():
  with pytest.raises(ValueError, match="'uniforn'; did you mean 'uniform'"):
    schedule.find("uniforn")
  assert schedule.find("sigmoid") is schedule.sigmoid
