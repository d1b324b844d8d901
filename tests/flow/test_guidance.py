"""Classifier-free guidance as algebra of two velocity fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.guidance import Guidance, classifier_free, combine
from lumina_jax.flow.ode import HEUN, solve, stateless
from lumina_jax.flow.samples import SINGLE, batch

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
T = np.float32(0.3)
TIMES = np.array([0.1, 0.3, 0.9], np.float32)
BATCH = batch(X)


def conditional(x, t):
  return jnp.sin(x) + 1


def unconditional(x, t):
  return x**2 - 1


def both(x, t):
  return conditional(x, t), unconditional(x, t)


CONDITIONAL, UNCONDITIONAL = np.sin(X) + 1, X**2 - 1


compiled = jax.jit(combine, static_argnames="samples")


def guide(guidance, t=T, layout=SINGLE):
  found = compiled(CONDITIONAL, UNCONDITIONAL, t, guidance, samples=layout)
  return np.asarray(found)


def test_scale_1_is_the_conditional_field():
  np.testing.assert_array_equal(guide(Guidance(1.0)), CONDITIONAL)


def test_other_scales_extrapolate_linearly():
  for scale in (-1.0, 0.0, 0.5, 2.0, 7.5):
    expected = scale * CONDITIONAL + (1 - scale) * UNCONDITIONAL
    np.testing.assert_allclose(guide(Guidance(scale)), expected, atol=1e-5)


def test_each_sample_may_have_its_scale():
  scales = np.array([0.0, 1.0, 4.0], np.float32)
  together = guide(Guidance(scales), np.full(3, T), BATCH)
  for i, scale in enumerate(scales):
    alone = guide(Guidance(scale))[i]
    np.testing.assert_allclose(together[i], alone, atol=1e-6)


def test_some_channels_may_stay_unguided():
  channels = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
  found = guide(Guidance(4.0, channels=channels))
  always = guide(Guidance(4.0))
  np.testing.assert_array_equal(found[:, 3], CONDITIONAL[:, 3])
  np.testing.assert_array_equal(found[:, :3], always[:, :3])


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
  found = guide(Guidance(3.0, start, stop), TIMES, BATCH)
  always = guide(Guidance(3.0), TIMES, BATCH)
  guided = np.array(guided)[:, None]
  expected = np.where(guided, always, CONDITIONAL)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_interval_up_to_1_includes_1():
  np.testing.assert_array_equal(
    guide(Guidance(3.0, 0.0, 1.0), np.float32(1)), guide(Guidance(3.0))
  )


@pytest.mark.parametrize("renorm", [0.5, 1.3, 100.0])
def test_renorm_limits_the_length_of_each_sample(renorm):
  times = np.full(3, T)
  found = guide(Guidance(6.0, renorm=renorm), times, BATCH)
  free = guide(Guidance(6.0), times, BATCH)
  length = lambda v: np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
  # (Lumina-Image-2.0, equation 9)
  factor = np.minimum(1, renorm * length(CONDITIONAL) / length(free))
  np.testing.assert_allclose(found, factor * free, rtol=1e-5)


def test_renorm_leaves_unguided_velocities_alone():
  found = guide(Guidance(1.0, renorm=0.5))
  np.testing.assert_array_equal(found, CONDITIONAL)


def test_a_velocity_of_zero_stays_finite():
  zero = np.zeros_like(X)
  for minus in (zero, X):
    found = compiled(zero, minus, T, Guidance(4.0, renorm=1.0))
    np.testing.assert_array_equal(found, zero)
  found = compiled(zero, zero, T, Guidance(4.0))
  np.testing.assert_array_equal(found, zero)


def test_only_the_conditional_branch_runs_where_it_suffices():
  calls = []

  def note(name, t):
    jax.debug.callback(lambda t: calls.append((name, round(float(t), 3))), t)

  @stateless
  def two(x, t):
    note("both", t)
    return both(x, t)

  @stateless
  def one(x, t):
    note("one", t)
    return conditional(x, t)

  field = classifier_free(two, one, Guidance(3.0, 0.25, 0.75))
  solve(field, X, schedule.uniform(4), HEUN).block_until_ready()
  jax.effects_barrier()
  assert sorted(set(calls)) == [
    ("both", 0.25), ("both", 0.5), ("one", 0.0), ("one", 0.75), ("one", 1.0),
  ]  # fmt: skip
  calls.clear()
  always = classifier_free(two, one, Guidance(3.0))
  solve(always, X, schedule.uniform(2), HEUN).block_until_ready()
  jax.effects_barrier()
  assert {name for name, _ in calls} == {"both"}


def test_values_do_not_recompile():
  traces = []

  @jax.jit
  def end(x, guidance):
    traces.append(None)
    branches = stateless(both), stateless(conditional)
    field = classifier_free(*branches, guidance)
    return solve(field, x, schedule.uniform(3), HEUN)

  ends = [
    end(X, Guidance(*map(np.float32, values)))
    for values in ((3, 0, 1, 9), (1, 0, 1, 9), (5, 0.4, 1, 9), (5, 0, 1, 0.5))
  ]
  assert len(traces) == 1
  assert len(np.unique([found[0, 0] for found in ends])) == 4


def test_a_guided_field_can_be_solved():
  constant = lambda value: lambda x, t: jnp.full((3, 4), value)  # noqa: E731
  two = lambda x, t: (constant(2.0)(x, t), constant(1.0)(x, t))  # noqa: E731
  branches = stateless(two), stateless(constant(2.0))
  guided = classifier_free(*branches, Guidance(3.0))
  end = solve(guided, X, schedule.uniform(4), HEUN)
  np.testing.assert_allclose(end, X + 4.0, rtol=1e-6)
