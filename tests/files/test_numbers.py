"""Numbers of callers: finite, whole, positive; never True or False."""

import numpy as np
import pytest

from lumina_jax.files import numbers


def test_numbers_of_any_library_and_text():
  for value in (2, 2.0, "2", "2e0", np.float32(2), np.asarray(2)):
    assert numbers.number(value, "n") == numbers.positive(value, "n") == 2


@pytest.mark.parametrize(
  ("function", "value", "message"),
  [
    (numbers.number, "high", "n = 'high': must be a finite number"),
    (numbers.number, float("nan"), "n = nan: must be a finite number"),
    (numbers.number, True, "n = True: must be a finite number"),
    (numbers.number, 10**400, "n = 1000.*: must be a finite number"),
    (numbers.number, [1.0], r"n = \[1.0\]: must be a finite number"),
    (numbers.whole, 1.5, "n = 1.5: must be a whole number"),
    (numbers.whole, "tall", "n = 'tall': must be a whole number"),
    (numbers.whole, np.True_, "must be a whole number"),
    (numbers.positive, 0, "n = 0: must be at least 1"),
  ],
)
def test_other_values_are_named(function, value, message):
  with pytest.raises(ValueError, match=message):
    function(value, "n")
