"""Time grids from noise to data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule

FACTORS = (0.25, 1.0, 3.0, 4.0, 12.0)


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
