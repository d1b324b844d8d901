"""The times of a call: by name, by numbers, by size, in part."""

import dataclasses

import numpy as np
import pytest

from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.flow import schedule
from lumina_jax.pretrained import defaults
from lumina_jax.sampling.overrides import override
from lumina_jax.sampling.times import time_grid

DEFAULTS = dataclasses.replace(
  defaults.options(PUBLISHED["next_dit_t2i_2b_gqa"]),
  num_inference_steps=10,
  shift=1.0,
)


def grid(strength=1.0, **changes):
  return time_grid(override(DEFAULTS, changes), strength)


def times(tokens=4096, strength=1.0, **changes):
  return grid(strength, **changes).for_tokens(tokens)


def test_times_of_diffusers_scheduler():
  expected = np.asarray(schedule.diffusers(5, 1.0))
  noise = [1.0, 0.75025, 0.5005, 0.25075, 0.001, 0.0]
  np.testing.assert_allclose(1 - expected, noise, atol=1e-6)


def test_names_and_shift():
  np.testing.assert_allclose(times(), np.linspace(0, 1, 11), atol=1e-6)
  for found, base in (
    (times(shift=3.0), times()),
    (times(schedule="sigmoid", shift=3.0), schedule.sigmoid(10)),
  ):
    np.testing.assert_allclose(found, schedule.shift(base, 3.0), atol=1e-6)


def test_a_grid_of_diffusers_is_shifted_by_its_own_rule():
  found = times(schedule="diffusers", shift=3.0)
  np.testing.assert_allclose(found, schedule.diffusers(10, 3.0), atol=1e-6)
  with pytest.raises(ValueError, match="shift_tokens = 5"):
    grid(schedule="diffusers", shift_tokens=5)


def test_larger_samples_are_shifted_more():
  for tokens, factor in ((4096, 2), (16384, 4), (1024, 1)):
    found = times(tokens, shift=2.0, shift_tokens=4096)
    expected = schedule.shift(times(), factor)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_explicit_times_are_not_shifted():
  mine = [0, 0.1, 0.5, 1]
  shifted = dataclasses.replace(DEFAULTS, shift=4.0)
  for given in (mine, np.asarray(mine)):
    found = time_grid(override(shifted, {"schedule": given})).for_tokens(1)
    np.testing.assert_allclose(found, mine, atol=1e-7)


def test_noise_levels_are_shifted_and_end_in_data():
  # shift * sigma / (1 + (shift - 1) sigma)
  found = times(sigmas=[1.0, 0.5], shift=4.0)
  np.testing.assert_allclose(found, [0, 1 - 2 / 2.5, 1], atol=1e-6)


def test_the_last_times_of_a_grid_are_its_share():
  whole = times(shift=3.0)
  for strength in (0.1, 0.3, 0.5, 1.0):
    found = times(shift=3.0, strength=strength)
    expected = whole[-round(10 * strength) - 1 :]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_share_starts_at_its_own_time():
  for strength, steps in ((0.01, 1), (0.25, 3), (0.99, 10)):
    found = times(strength=strength)
    assert len(found) == steps + 1 == grid(strength).steps + 1
    np.testing.assert_allclose(found[[0, -1]], [1 - strength, 1], atol=1e-6)
    np.testing.assert_allclose(np.diff(found), strength / steps, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "values"),
  [
    *(("schedule", x) for x in ([0], [0, 1, 0.5], [0.1, 1], [0, 0.9])),
    *(("schedule", x) for x in ([0, 0, 1], [0, "a", 1], [])),
    *(("sigmas", x) for x in ([0.5, 1.0], [1.0, 0.0], [1.5, 0.5], [0.5, 0.5])),
  ],
)
def test_explicit_times_out_of_order_are_refused(name, values):
  with pytest.raises(ValueError, match=f"{name} = "):
    grid(**{name: values})
