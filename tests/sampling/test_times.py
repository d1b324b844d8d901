"""The times of a call: by name, by numbers, by size, in part."""

import dataclasses

import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.flow import schedule
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import times as time_grid

OWN = dataclasses.replace(
  defaults.sampling(PUBLISHED["next_dit_t2i_2b_gqa"], 128),
  num_inference_steps=10,
  shift=1.0,
)


def times(tokens=4096, schedule=None, sigmas=None, strength=1.0, **changes):
  sampling = dataclasses.replace(OWN, **changes)
  return time_grid.choose(sampling, schedule, sigmas, strength).of(tokens)


def test_names_and_shift():
  np.testing.assert_allclose(times(), np.linspace(0, 1, 11), atol=1e-6)
  sigmoid = schedule.shift(schedule.sigmoid(10), 3.0)
  shifted = schedule.shift(times(), 3.0)
  np.testing.assert_allclose(times(shift=3.0), shifted, atol=1e-6)
  found = time_grid.choose(
    dataclasses.replace(OWN, schedule="sigmoid", shift=3.0)
  ).of(1)
  np.testing.assert_allclose(found, sigmoid, atol=1e-6)


def test_a_grid_of_diffusers_is_shifted_by_its_own_rule():
  found = time_grid.choose(
    dataclasses.replace(OWN, schedule="diffusers", shift=3.0)
  ).of(1)
  np.testing.assert_allclose(found, schedule.diffusers(10, 3.0), atol=1e-6)
  with pytest.raises(ValueError, match="shift_tokens = 5"):
    time_grid.choose(
      dataclasses.replace(OWN, schedule="diffusers", shift_tokens=5)
    )


@pytest.mark.parametrize(
  ("tokens", "factor"), [(4096, 2), (16384, 4), (1024, 1)]
)
def test_larger_pictures_are_shifted_more(tokens, factor):
  found = times(tokens, shift=2.0, shift_tokens=4096)
  np.testing.assert_allclose(found, schedule.shift(times(), factor), atol=1e-6)


def test_times_of_the_caller_are_not_shifted():
  mine = [0, 0.1, 0.5, 1]
  np.testing.assert_allclose(times(schedule=mine, shift=4.0), mine, atol=1e-7)
  np.testing.assert_allclose(times(schedule=np.asarray(mine)), mine, atol=1e-7)


@pytest.mark.parametrize(
  "mine", [[], [0], [0, 1, 0.5], [0.1, 1], [0, 0.9], [0, 0, 1], [0, "a", 1]]
)
def test_times_must_rise_from_noise_to_data(mine):
  with pytest.raises(ValueError, match="schedule"):
    times(schedule=mine)


def test_levels_of_the_caller_are_shifted_and_end_in_data():
  # shift * sigma / (1 + (shift - 1) sigma)
  found = times(sigmas=[1.0, 0.5], shift=4.0)
  np.testing.assert_allclose(found, [0, 1 - 2 / 2.5, 1], atol=1e-6)


@pytest.mark.parametrize(
  "sigmas", [[], [0.5, 1.0], [1.0, 0.0], [1.5, 0.5], [0.5, 0.5]]
)
def test_levels_must_fall_within_noise_and_data(sigmas):
  with pytest.raises(ValueError, match="noise levels falling from 1"):
    times(sigmas=sigmas)


def test_one_kind_of_numbers_at_a_time():
  with pytest.raises(ValueError, match="schedule and sigmas"):
    times(schedule=[0, 1], sigmas=[1.0])


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 1.0])
def test_a_whole_share_is_the_grids_own_last_times(strength):
  whole = times(shift=3.0)
  found = times(shift=3.0, strength=strength)
  np.testing.assert_allclose(
    found, whole[-round(10 * strength) - 1 :], atol=1e-6
  )


@pytest.mark.parametrize(
  ("strength", "steps"), [(0.01, 1), (0.25, 3), (0.99, 10)]
)
def test_another_share_begins_where_it_says(strength, steps):
  found = times(strength=strength)
  assert len(found) == steps + 1
  np.testing.assert_allclose(found[[0, -1]], [1 - strength, 1], atol=1e-6)
  np.testing.assert_allclose(np.diff(found), strength / steps, atol=1e-6)
