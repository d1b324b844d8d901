"""Classifier-free guidance as algebra of two velocity fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import samples, schedule
from lumina_jax.flow.guidance import Guidance, classifier_free, combine
from lumina_jax.flow.ode import HEUN, solve

X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
T = jnp.float32(0.3)
TIMES = jnp.array([0.1, 0.3, 0.9])


def conditional(x, t):
  return jnp.sin(x) + 1


def unconditional(x, t):
  return x**2 - 1


def both(x, t):
  return conditional(x, t), unconditional(x, t)


def steer(guidance, t=T, of=samples.TOGETHER):
  return combine(conditional(X, t), unconditional(X, t), t, guidance, of)


def test_scale_1_is_the_conditional_field():
  np.testing.assert_array_equal(steer(Guidance(1.0)), conditional(X, T))


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_other_scales_extrapolate_linearly(scale):
  expected = scale * conditional(X, T) + (1 - scale) * unconditional(X, T)
  np.testing.assert_allclose(steer(Guidance(scale)), expected, atol=1e-5)


def test_each_sample_may_have_its_scale():
  scales = jnp.array([0.0, 1.0, 4.0])
  together = steer(Guidance(scales), jnp.full(3, T), samples.batch(X))
  for i, scale in enumerate(scales):
    alone = steer(Guidance(scale))[i]
    np.testing.assert_allclose(together[i], alone, atol=1e-6)


def test_some_channels_may_be_left_alone():
  channels = jnp.array([1.0, 1.0, 1.0, 0.0])
  found = steer(Guidance(4.0, channels=channels))
  np.testing.assert_array_equal(found[:, 3], conditional(X, T)[:, 3])
  np.testing.assert_array_equal(found[:, :3], steer(Guidance(4.0))[:, :3])


@pytest.mark.parametrize(
  ("start", "stop", "guided"),
  [
    (0.0, 1.0, [1, 1, 1]),
    (0.0, 0.3, [1, 0, 0]),
    (0.3, 1.0, [0, 1, 1]),
    (0.2, 0.5, [0, 1, 0]),
  ],
)
def test_it_acts_within_its_interval_only(start, stop, guided):
  of = samples.batch(X)
  found = steer(Guidance(3.0, start, stop), TIMES, of)
  always = steer(Guidance(3.0), TIMES, of)
  for i in range(3):
    expected = always[i] if guided[i] else conditional(X, T)[i]
    np.testing.assert_allclose(found[i], expected, atol=1e-6)


def test_the_end_of_time_is_within_an_interval_that_ends_there():
  np.testing.assert_array_equal(
    steer(Guidance(3.0, 0.0, 1.0), jnp.float32(1)), steer(Guidance(3.0))
  )


@pytest.mark.parametrize("renorm", [0.5, 1.0, 1.3, 100.0])
def test_a_steered_velocity_gets_no_longer_than_allowed(renorm):
  of, times = samples.batch(X), jnp.full(3, T)
  found = steer(Guidance(6.0, renorm=renorm), times, of)
  plain, free = conditional(X, T), steer(Guidance(6.0), times, of)
  for row in range(3):
    length = jnp.linalg.norm(free[row])
    # (Lumina-Image-2.0, equation 9)
    factor = min(1, renorm * jnp.linalg.norm(plain[row]) / length)
    np.testing.assert_allclose(found[row], factor * free[row], rtol=1e-5)


def test_lengths_do_not_matter_where_nothing_is_steered():
  found = steer(Guidance(1.0, renorm=0.5))
  np.testing.assert_array_equal(found, conditional(X, T))


def test_a_velocity_of_zero_stays_finite():
  zero = jnp.zeros_like(X)
  for minus in (zero, X):
    found = combine(zero, minus, T, Guidance(4.0, renorm=1.0))
    np.testing.assert_array_equal(found, zero)
  found = combine(zero, zero, T, Guidance(4.0))
  np.testing.assert_array_equal(found, zero)


def test_only_the_conditional_branch_is_asked_where_it_is_enough():
  asked = []

  def tell(name, t):
    jax.debug.callback(lambda t: asked.append((name, round(float(t), 3))), t)

  def two(x, t):
    tell("both", t)
    return both(x, t)

  def one(x, t):
    tell("one", t)
    return conditional(x, t)

  field = classifier_free(two, one, Guidance(3.0, 0.25, 0.75))
  solve(field, X, schedule.uniform(4), HEUN).block_until_ready()
  jax.effects_barrier()
  assert sorted(set(asked)) == [
    ("both", 0.25), ("both", 0.5), ("one", 0.0), ("one", 0.75), ("one", 1.0),
  ]  # fmt: skip
  asked.clear()
  always = classifier_free(two, one, Guidance(3.0))
  solve(always, X, schedule.uniform(2), HEUN).block_until_ready()
  jax.effects_barrier()
  assert {name for name, _ in asked} == {"both"}


def test_values_do_not_recompile():
  traces = []

  @jax.jit
  def run(x, guidance):
    traces.append(None)
    field = classifier_free(both, conditional, guidance)
    return solve(field, x, schedule.uniform(3), HEUN)

  ends = [
    run(X, Guidance(*map(jnp.float32, values)))
    for values in ((3, 0, 1, 9), (1, 0, 1, 9), (5, 0.4, 1, 9), (5, 0, 1, 0.5))
  ]
  assert len(traces) == 1
  assert len(np.unique([end[0, 0] for end in ends])) == 4


def test_a_guided_field_can_be_solved():
  constant = lambda value: lambda x, t: jnp.full((3, 4), value)  # noqa: E731
  two = lambda x, t: (constant(2.0)(x, t), constant(1.0)(x, t))  # noqa: E731
  guided = classifier_free(two, constant(2.0), Guidance(3.0))
  end = solve(guided, X, schedule.uniform(4), HEUN)
  np.testing.assert_allclose(end, X + 4.0, rtol=1e-6)
