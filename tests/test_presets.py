"""What a call samples with: defaults, the preset, what the caller changes."""

import dataclasses

import numpy as np
import pytest

from lumina_jax import presets
from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.flow import schedule
from lumina_jax.pretrained import defaults

MODEL = PUBLISHED["next_dit_t2i_2b_gqa"]
OWN = defaults.sampling(MODEL, 128)


def test_times_of_diffusers_scheduler():
  times = np.asarray(schedule.diffusers(5, 1.0))
  noise = [1.0, 0.75025, 0.5005, 0.25075, 0.001, 0.0]
  np.testing.assert_allclose(1 - times, noise, atol=1e-6)


def test_levels_of_the_caller_are_shifted_and_end_in_data():
  sampling = dataclasses.replace(OWN, shift=4.0)
  times = np.asarray(presets.times(sampling, [1.0, 0.5]))
  # shift * sigma / (1 + (shift - 1) sigma)
  np.testing.assert_allclose(times, [0, 1 - 2 / 2.5, 1], atol=1e-6)


@pytest.mark.parametrize(
  "sigmas", [[], [0.5, 1.0], [1.0, 0.0], [1.5, 0.5], [0.5, 0.5]]
)
def test_levels_must_fall_within_noise_and_data(sigmas):
  with pytest.raises(ValueError, match="noise levels falling from 1"):
    presets.times(OWN, sigmas)


def test_the_preset_is_what_diffusers_does():
  theirs = presets.choose(OWN, "diffusers", {"shift": 3.0}, {})
  assert (theirs.solver, theirs.shift, theirs.grid) == ("euler", 3, "diffusers")
  assert (theirs.beyond.watershed, theirs.beyond.below) == (1.0, True)


def test_the_caller_stands_above_both():
  changes = dict(solver="heun", shift=None, watershed=0.5, proportional=False)
  mine = presets.choose(OWN, "diffusers", {}, changes)
  assert (mine.solver, mine.shift) == ("heun", 1.0)
  assert (mine.beyond.watershed, mine.beyond.proportional) == (0.5, False)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("difusers", {}, {}), "did you mean 'diffusers'"),
    (("diffusers", {"use_dynamic_shifting": True}, {}), "use_dynamic_shifting"),
    (("diffusers", {"num_train_timesteps": 100}, {}), "num_train_timesteps"),
    ((None, {}, {"shift": -1.0}), "shift = -1.0"),
    ((None, {}, {"solver": "midpiont"}), "did you mean 'midpoint'"),
  ],
)
def test_what_cannot_be_done_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    presets.choose(OWN, *arguments)


def test_without_a_rule_there_is_nothing_to_change():
  plain = dataclasses.replace(OWN, beyond=None)
  with pytest.raises(ValueError, match="watershed: this pipeline has no rule"):
    presets.choose(plain, None, {}, {"watershed": 0.5})
