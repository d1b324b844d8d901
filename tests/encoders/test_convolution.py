"""Layers of autoencoders."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.autoencoder import uniform

from lumina_jax.encoders.convolution import Conv


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (1, 1)])
def test_doubling_is_a_convolution_of_repeated_pixels(rows, columns):
  x = uniform(2, rows, columns, 3)
  same, double = (Conv(5, jnp.float32, size=s) for s in ("same", "double"))
  params = {"params": {"kernel": uniform(3, 3, 3, 5), "bias": uniform(5)}}
  expected = same.apply(params, x.repeat(2, axis=1).repeat(2, axis=2))
  np.testing.assert_allclose(double.apply(params, x), expected, atol=1e-5)
