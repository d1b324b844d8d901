"""The linear path: its ends, its derivative, the original's values."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import path

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"


def pair(shape=(3, 4)):
  noise, data = jax.random.normal(jax.random.key(0), (2, *shape))
  return noise, data


def test_the_path_runs_from_noise_to_data():
  x0, x1 = pair()
  np.testing.assert_array_equal(path.interpolate(x0, x1, 0.0), x0)
  np.testing.assert_array_equal(path.interpolate(x0, x1, 1.0), x1)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_velocity_is_the_derivative_of_the_path(t):
  x0, x1 = pair()
  _, slope = jax.jvp(lambda t: path.interpolate(x0, x1, t), (t,), (1.0,))
  np.testing.assert_allclose(slope, path.velocity(x0, x1), rtol=1e-6)


def test_times_broadcast_over_a_sample():
  x0, x1 = pair()
  times = jnp.array([[0.1], [0.5], [0.9]])
  found = path.interpolate(x0, x1, times)
  each = [path.interpolate(x0[i], x1[i], times[i]) for i in range(3)]
  np.testing.assert_array_equal(found, each)


def test_path_and_velocity_equal_the_original():
  golden = load_file(GOLDEN)
  x0, x1 = golden["x0"], golden["x1"]
  t = golden["t"].reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(
    path.interpolate(x0, x1, t), golden["linear_xt"], atol=1e-6
  )
  np.testing.assert_allclose(
    path.velocity(x0, x1), golden["linear_ut"], atol=1e-6
  )
