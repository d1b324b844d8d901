"""Time grids from noise to data."""

import jax
import numpy as np
import pytest

from lumina_jax.flow import schedule

FACTORS = np.array([[0.25], [1.0], [3.0], [3.3], [4.0], [12.0]], np.float32)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_uniform_has_equal_steps_from_0_to_1(steps):
  times = schedule.uniform(steps)
  np.testing.assert_allclose(times, np.arange(steps + 1) / steps, atol=1e-6)
  assert times[0] == 0
  assert times[-1] == 1


def test_shift_keeps_the_ends_and_the_order():
  times = np.asarray(schedule.shift(schedule.uniform(50), FACTORS))
  assert np.all(times[:, 0] == 0) and np.all(times[:, -1] == 1)
  assert np.all(np.diff(times) > 0)


def test_shift_4_equals_the_reference():
  times = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
  expected = [0.0270, 0.0769, 0.2, 0.4286, 0.6923]
  np.testing.assert_allclose(schedule.shift(times, 4.0), expected, atol=5e-5)


def test_shift_1_changes_nothing():
  times = np.asarray(schedule.uniform(9))
  np.testing.assert_allclose(schedule.shift(times, 1.0), times, rtol=1e-6)


def test_shift_is_that_of_diffusers_in_noise_levels():
  times = np.asarray(schedule.uniform(9))
  sigma = 1 - times
  expected = FACTORS * sigma / (1 + (FACTORS - 1) * sigma)
  found = schedule.shift(times, FACTORS)
  np.testing.assert_allclose(1 - found, expected, atol=1e-6)


def test_the_factor_may_be_traced():
  times = np.asarray(schedule.uniform(5))
  found = jax.jit(schedule.shift)(times, 4.0)
  np.testing.assert_allclose(found, schedule.shift(times, 4.0), rtol=1e-6)


def test_the_sigmoid_equals_the_reconstruction_of_the_papers_figure():
  expected = [0, 0.021, 0.058, 0.118, 0.211, 0.337, 0.487, 0.878, 0.982, 0.998]
  found = schedule.sigmoid(10)
  np.testing.assert_allclose(found, [*expected, 1], atol=5e-4)


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_the_sigmoid_rises_from_0_to_1(steps):
  sigmoid = jax.jit(schedule.sigmoid, static_argnums=0)
  for center in (0.2, 0.6, 0.9):
    for late in (6.0, 20.0):
      times = np.asarray(sigmoid(steps, center, 6.0, late))
      assert len(times) == steps + 1
      assert times[0] == 0 and times[-1] == 1
      assert np.all(np.diff(times) > 0)


def test_the_shift_factor_is_the_root_of_the_tokens():
  assert schedule.shift_factor(4096, 1024) == 2
  assert schedule.shift_factor(1024, 1024) == 1


@pytest.mark.parametrize(
  ("strength", "expected"),
  [
    (1.0, [0.0, 0.1, 0.3, 0.6, 1.0]),
    (0.5, [0.3, 0.6, 1.0]),
    (0.4, [0.42, 0.68, 1.0]),
    (0.01, [0.984, 1.0]),
  ],
)
def test_the_tail_of_a_grid_is_its_last_part(strength, expected):
  times = np.array([0.0, 0.1, 0.3, 0.6, 1.0], np.float32)
  found = schedule.tail(times, strength)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("uniforn", "'uniforn'; did you mean 'uniform'"),
    ("rational", "'rational' is 'uniform' with a shift: set shift instead"),
  ],
)
def test_unknown_schedules_are_refused(name, message):
  with pytest.raises(ValueError, match=message):
    schedule.get_schedule(name)


def test_schedules_have_names():
  assert schedule.get_schedule("sigmoid") is schedule.sigmoid
