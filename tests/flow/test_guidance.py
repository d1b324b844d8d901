"""Classifier-free guidance as algebra of two velocity fields."""

import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.guidance import classifier_free
from lumina_jax.flow.ode import SOLVERS, solve

X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
T = jnp.float32(0.3)


def conditional(x, t):
  return jnp.sin(x) + t


def unconditional(x, t):
  return x**2 - t


def both(x, t):
  """Conditional rows first, unconditional ones after them."""
  half = len(x) // 2
  return jnp.concatenate([conditional(x[:half], t), unconditional(x[half:], t)])


def test_scale_1_is_the_conditional_field():
  guided = classifier_free(both, 1.0)
  np.testing.assert_allclose(guided(X, T), conditional(X, T), atol=1e-6)


def test_scale_0_is_the_unconditional_field():
  guided = classifier_free(both, 0.0)
  np.testing.assert_array_equal(guided(X, T), unconditional(X, T))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_other_scales_extrapolate_linearly(scale):
  expected = scale * conditional(X, T) + (1 - scale) * unconditional(X, T)
  guided = classifier_free(both, scale)
  np.testing.assert_allclose(guided(X, T), expected, atol=1e-5)


def test_each_sample_may_have_its_scale():
  scales = jnp.array([[0.0], [1.0], [4.0]])
  together = classifier_free(both, scales)(X, T)
  for i, scale in enumerate(scales[:, 0]):
    alone = classifier_free(both, scale)(X[i : i + 1], T)
    np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-6)


def test_the_field_is_called_once_with_equal_halves():
  calls = []

  def field(x, t):
    calls.append((x, t))
    return both(x, t)

  classifier_free(field, 2.0)(X, T)
  ((x, t),) = calls
  np.testing.assert_array_equal(x, jnp.concatenate([X, X]))
  assert t == T


def test_a_guided_field_can_be_solved():
  field = lambda x, t: jnp.concatenate(  # noqa: E731
    [jnp.full((3, 4), 2.0), jnp.full((3, 4), 1.0)]
  )
  guided = classifier_free(field, 3.0)
  end = solve(guided, X, schedule.uniform(4), SOLVERS["heun"])
  np.testing.assert_allclose(end, X + 4.0, rtol=1e-6)
