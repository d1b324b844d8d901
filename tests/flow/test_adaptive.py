"""Dormand-Prince with steps of each sample's own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import schedule
from lumina_jax.flow.adaptive import DORMAND_PRINCE, ERROR, DormandPrince
from lumina_jax.flow.ode import Segment, run, solve
from lumina_jax.flow.samples import TOGETHER, batch

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
ENDS = np.array([0.0, 1.0])


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def swing(x, t):
  return jnp.cos(3 * t) * x


def arrive(velocity, x, times=ENDS, samples=TOGETHER, **options):
  segment = Segment(velocity, times)
  return run([segment], x, DormandPrince(**options), samples)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("points", [6, 11])
def test_end_states_equal_the_original(points, factor, x64):
  golden = load_file(GOLDEN)

  def field(x, t):
    return jnp.cos(3 * t) * x - 0.5 * x**2 / (1 + x**2)

  times = schedule.shift(schedule.uniform(points - 1), factor)
  x = jnp.asarray(golden["ode_x0"])
  state = arrive(field, x, times, rtol=1e-9, atol=1e-9)
  expected = golden[f"ode_dopri5_points{points}_shift{factor}"]
  np.testing.assert_allclose(state.x, expected, atol=1e-6, rtol=0)
  assert not state.behind


def test_the_tableau_is_of_fifth_order_and_its_error_of_none():
  a = [np.pad(row, (0, 7 - len(row))) for row in DORMAND_PRINCE.a]
  a, b, c = np.array(a), np.array(DORMAND_PRINCE.b), np.array(DORMAND_PRINCE.c)
  for power in range(5):
    assert b @ c**power == pytest.approx(1 / (power + 1))
  assert b @ a @ c**3 == pytest.approx(1 / 20)
  fourth = b - np.array(ERROR)
  for power in range(4):
    assert fourth @ c**power == pytest.approx(1 / (power + 1))
  # Of no more than fourth order, or it would tell nothing.
  assert abs(fourth @ c**4 - 1 / 5) > 1e-4


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_the_error_follows_the_tolerance(rtol, x64):
  x = jnp.array([0.5, 1.0, 2.0])
  state = arrive(swing, x, rtol=rtol, atol=1e-12)
  exact = x * np.exp(np.sin(3) / 3)
  assert np.abs(state.x / exact - 1).max() < 10 * rtol
  loose = arrive(swing, x, rtol=1000 * rtol, atol=1e-12)
  assert loose.evaluations <= state.evaluations
  assert rtol > 1e-4 or loose.evaluations < state.evaluations


def test_time_may_run_backwards(x64):
  x = jnp.array([0.5, 1.0, 2.0])
  there = arrive(swing, x, rtol=1e-9, atol=1e-9).x
  back = arrive(swing, there, ENDS[::-1], rtol=1e-9, atol=1e-9).x
  np.testing.assert_allclose(back, x, rtol=1e-7)


def test_no_time_beyond_the_ends_is_asked_for():
  seen = []

  def field(x, t):
    jax.debug.callback(lambda t: seen.append(float(t)), t)
    return -50 * x

  arrive(field, jnp.ones(2)).x.block_until_ready()
  jax.effects_barrier()
  assert min(seen) >= 0 and max(seen) <= 1


def test_samples_have_steps_of_their_own(x64):
  """A hard sample beside an easy one changes neither."""
  rates = jnp.array([0.1, 40.0])
  x = jnp.ones((2, 3))

  def pair(x, t):
    return -(rates * jnp.cos(t))[:, None] * x

  state = arrive(pair, x, np.stack([ENDS, ENDS], 1), batch(x))
  calls = []
  for row in range(2):
    own = lambda x, t, r=rates[row]: -r * jnp.cos(t) * x  # noqa: E731
    alone = arrive(own, x[row])
    np.testing.assert_allclose(state.x[row], alone.x, rtol=1e-12)
    calls.append(int(alone.evaluations))
  assert state.evaluations == max(calls) > 2 * min(calls)


def test_what_does_not_arrive_is_told(x64):
  x = jnp.ones((2, 1))
  rates = jnp.array([1.0, 1e5])
  stiff = lambda x, t: -rates[:, None] * x  # noqa: E731
  times = np.stack([ENDS, ENDS], 1)
  state = arrive(stiff, x, times, batch(x), max_evaluations=100)
  assert state.behind.tolist() == [False, True]
  assert state.evaluations <= 100
  np.testing.assert_allclose(state.x[0], np.exp(-1), rtol=1e-3)


def test_what_is_not_finite_ends():
  broken = lambda x, t: jnp.where(t > 0.5, jnp.nan, x)  # noqa: E731
  state = arrive(broken, jnp.ones(2), max_evaluations=200)
  assert state.behind and state.evaluations <= 200


def test_the_state_keeps_its_dtype():
  field = lambda x, t: swing(x.astype(jnp.float32), t)  # noqa: E731
  for dtype in (jnp.bfloat16, jnp.float32):
    end = solve(field, jnp.ones(3, dtype), ENDS, DormandPrince(rtol=0.05))
    assert end.dtype == dtype


def test_it_goes_on_with_the_step_that_it_had(x64):
  """Cut in two it arrives as well, at the price of a step cut short."""
  x, half = jnp.ones(3), np.array([0.0, 0.5, 1.0])
  parts = [Segment(swing, half[:2]), Segment(swing, half[1:])]
  whole, found = arrive(swing, x), run(parts, x, DormandPrince())
  np.testing.assert_allclose(found.x, whole.x, rtol=1e-3)
  assert found.evaluations <= whole.evaluations + 14


def test_other_values_do_not_recompile():
  traces = []

  @jax.jit
  def run_(x, rate):
    traces.append(None)
    return solve(lambda x, t: -rate * x, x, ENDS, DormandPrince())

  for rate in (0.1, 1.0, 30.0):
    np.testing.assert_allclose(
      run_(jnp.ones(2), rate), np.exp(-rate), atol=1e-3
    )
  assert len(traces) == 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(rtol=0), "rtol = 0"),
    (dict(atol=-1), "atol = -1"),
    (dict(max_evaluations=3), "max_evaluations = 3"),
  ],
)
def test_options_that_are_none(options, message):
  with pytest.raises(ValueError, match=message):
    DormandPrince(**options)
