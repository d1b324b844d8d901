"""Dormand-Prince, with steps of each sample's own."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow.adaptive import DORMAND_PRINCE, ERROR, DormandPrince
from lumina_jax.flow.ode import Segment, run, solve, stateless
from lumina_jax.flow.samples import SINGLE, batch

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
ENDS = np.array([0.0, 1.0])


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def swing(x, t):
  return jnp.cos(3 * t) * x


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _run(solver, field, x, times, samples):
  return run([Segment(stateless(field), times)], x, solver, samples)


def integrate(field, x, times=ENDS, samples=SINGLE, **options):
  return _run(DormandPrince(**options), field, x, times, samples)


def golden_field(x, t):
  return jnp.cos(3 * t) * x - 0.5 * x**2 / (1 + x**2)


def test_end_states_equal_the_original(x64):
  golden = load_file(GOLDEN)
  x = jnp.asarray(golden["ode_x0"])
  state = integrate(golden_field, x, rtol=1e-9, atol=1e-9)
  assert not state.behind
  for points in (6, 11):  # Times between the ends make no difference.
    for factor in (1, 4):
      expected = golden[f"ode_dopri5_points{points}_shift{factor}"]
      np.testing.assert_allclose(state.x, expected, atol=1e-6, rtol=0)


def test_times_between_the_ends_are_ignored():
  x, times = jnp.ones(2), np.linspace(0, 1, 6) ** 2
  found, expected = integrate(swing, x, times), integrate(swing, x)
  np.testing.assert_array_equal(found.x, expected.x)


def test_the_tableau_is_of_fifth_order_and_its_error_of_fourth():
  a = [np.pad(row, (0, 7 - len(row))) for row in DORMAND_PRINCE.a]
  a, b, c = np.array(a), np.array(DORMAND_PRINCE.b), np.array(DORMAND_PRINCE.c)
  for power in range(5):
    assert b @ c**power == pytest.approx(1 / (power + 1))
  assert b @ a @ c**3 == pytest.approx(1 / 20)
  np.testing.assert_array_equal(a[-1], b)  # The last stage is the next first.
  fourth = b - np.array(ERROR)
  for power in range(4):
    assert fourth @ c**power == pytest.approx(1 / (power + 1))
  # Of no more than fourth order, or the difference would measure nothing.
  assert abs(fourth @ c**4 - 1 / 5) > 1e-4


def test_the_error_follows_the_tolerance(x64):
  x, evaluations = jnp.array([0.5, 1.0, 2.0]), []
  exact = x * np.exp(np.sin(3) / 3)
  for rtol in (1e-3, 1e-6, 1e-9):
    state = integrate(swing, x, rtol=rtol, atol=1e-12)
    assert np.abs(state.x / exact - 1).max() < 10 * rtol
    evaluations.append(int(state.evaluations))
  assert evaluations == sorted(set(evaluations))


def test_no_time_beyond_the_ends_is_evaluated():
  seen = []

  def field(x, t):
    jax.debug.callback(lambda t: seen.append(float(t)), t)
    return -50 * x

  integrate(field, jnp.ones(2)).x.block_until_ready()
  jax.effects_barrier()
  assert min(seen) == 0 and max(seen) == 1


def test_samples_have_steps_of_their_own(x64):
  """A hard sample beside an easy one changes neither."""
  rates = jnp.array([0.1, 40.0])
  x = jnp.ones((2, 3))

  def decay(x, t):
    return -(rates * jnp.cos(t))[:, None] * x

  @jax.jit
  def alone(x, rate):
    field = stateless(lambda x, t: -rate * jnp.cos(t) * x)
    return run([Segment(field, ENDS)], x, DormandPrince())

  state = integrate(decay, x, np.stack([ENDS, ENDS], 1), batch(x))
  evaluations = []
  for row, rate in enumerate(rates):
    expected = alone(x[row], rate)
    np.testing.assert_allclose(state.x[row], expected.x, rtol=1e-12)
    evaluations.append(int(expected.evaluations))
  assert state.evaluations == max(evaluations) > 2 * min(evaluations)


def test_samples_beyond_the_budget_are_behind(x64):
  x = jnp.ones((2, 1))
  rates = jnp.array([1.0, 1e5])
  stiff = lambda x, t: -rates[:, None] * x  # noqa: E731
  times = np.stack([ENDS, ENDS], 1)
  state = integrate(stiff, x, times, batch(x), max_evaluations=100)
  assert state.behind.tolist() == [False, True]
  assert state.evaluations <= 100
  np.testing.assert_allclose(state.x[0], np.exp(-1), rtol=1e-3)


def test_values_that_are_not_finite_end_at_the_budget():
  broken = lambda x, t: jnp.where(t > 0.5, jnp.nan, x)  # noqa: E731
  state = integrate(broken, jnp.ones(2), max_evaluations=200)
  assert state.behind and state.evaluations <= 200


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_state_keeps_its_dtype(dtype):
  field = lambda x, t: swing(x.astype(jnp.float32), t)  # noqa: E731
  end = integrate(field, jnp.ones(3, dtype), rtol=0.05).x
  assert end.dtype == dtype


def test_a_segment_begins_with_the_last_step_length(x64):
  """Cut in two it arrives as well, at the price of a step cut short."""

  @jax.jit
  def halves(x):
    field, times = stateless(swing), np.array([0.0, 0.5, 1.0])
    segments = [Segment(field, times[:2]), Segment(field, times[1:])]
    return run(segments, x, DormandPrince())

  whole, found = integrate(swing, jnp.ones(3)), halves(jnp.ones(3))
  np.testing.assert_allclose(found.x, whole.x, rtol=1e-3)
  assert found.evaluations <= whole.evaluations + 14


def test_other_values_do_not_recompile():
  traces = []

  @jax.jit
  def end(x, rate):
    traces.append(None)
    field = stateless(lambda x, t: -rate * x)
    return solve(field, x, ENDS, DormandPrince())

  for rate in (0.1, 1.0, 30.0):
    found = end(jnp.ones(2), rate)
    np.testing.assert_allclose(found, np.exp(-rate), atol=1e-3)
  assert len(traces) == 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(rtol=0), "rtol = 0"),
    (dict(atol=-1), "atol = -1"),
    (dict(max_evaluations=3), "max_evaluations = 3"),
  ],
)
def test_invalid_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    DormandPrince(**options)
