"""Memory of samples packed in rows, with both branches of guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import schedule
from lumina_jax.flow.adaptive import DormandPrince
from lumina_jax.flow.guidance import Guidance, classifier_free
from lumina_jax.flow.ode import Segment, run
from lumina_jax.flow.samples import RowMemory, rows
from lumina_jax.flow.solvers import SOLVERS


@pytest.fixture(autouse=True)
def x64():
  with jax.enable_x64(True):
    yield


SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
ROW_RATES = np.array([[0.1, 40.0], [5.0, 0.0]])
P = 2


def branches(segments, rates, guidance):
  """Guided decay at the rates of packed samples, with memory of every kind."""
  layout = rows(segments, segments > 0, rates.shape[1])
  B, L = segments.shape

  def field(x, t, memory):
    """One branch or both; the second has rates of its own."""
    R = memory.tokens.shape[0]
    first = jnp.arange(R)[:, None] < B
    tile = lambda a: jnp.tile(a, (R // B,) + (1,) * (a.ndim - 1))  # noqa: E731
    rate = tile(rates * jnp.cos(t)) * jnp.where(first, 1.0, 0.5)
    spread = rows(tile(segments), tile(segments > 0), rates.shape[1]).spread
    slope = -spread(rate) * tile(x) + 1e-3 * memory.layers["key"][1]
    return slope, RowMemory(
      layers={"key": memory.layers["key"] + jnp.stack([slope, 2 * slope])},
      tokens=memory.tokens + slope.sum(-1),
      samples={"rate": memory.samples["rate"] + rate},
    )

  def both(x, t, memory):
    slope, memory = field(x, t, memory)
    return (slope[:B], slope[B:]), memory

  def conditional(x, t, memory):
    slope, part = field(x, t, memory.first(B))
    return slope, memory.with_first(part)

  memory = RowMemory(
    layers={"key": jnp.zeros((2, 2 * B, L, P))},
    tokens=jnp.zeros((2 * B, L)),
    samples={"rate": jnp.zeros((2 * B, rates.shape[1]))},
  )
  velocity = classifier_free(both, conditional, guidance, layout)
  return velocity, layout, memory


# An adaptive solver that rejects steps, and guidance that does not act on all
# samples at the same times.
CASES = {
  "dopri5": (Guidance(2.0), np.array([0.0, 1.0])),
  "heun": (Guidance(2.0, 0.2, 0.7), np.linspace(0, 1, 9)),
}
SHIFTS = np.array([[1.0, 4.0], [0.5, 1.0]])


@functools.partial(jax.jit, static_argnums=0)
def solve_rows(name, x, segments, rates, shifts):
  guidance, times = CASES[name]
  velocity, layout, memory = branches(segments, rates, guidance)
  times = schedule.shift(times[:, None, None], shifts)
  return run([Segment(velocity, times)], x, SOLVERS[name], layout, memory)


def of_sample(state, row, number, tokens):
  """Solution and memory of both branches of one sample."""
  state = jax.device_get(state)  # Where indexing compiles nothing.
  B, memory = len(state.x), state.velocity_memory
  return jax.tree.leaves(
    [
      state.x[row, tokens],
      [memory.layers["key"][:, r, tokens] for r in (row, B + row)],
      [memory.tokens[r, tokens] for r in (row, B + row)],
      [memory.samples["rate"][r, number] for r in (row, B + row)],
    ]
  )


def check_equal(found, expected):
  for a, b in zip(found, expected, strict=True):
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_packed_samples_have_the_memory_of_samples_alone(name):
  x = np.random.default_rng(1).standard_normal((2, 6, P))
  packed = solve_rows(name, x, SEGMENTS, ROW_RATES, SHIFTS)
  for row, number in ((0, 0), (0, 1), (1, 0)):
    own = number + 1 == SEGMENTS
    own = own & (np.arange(2) == row)[:, None]
    solo = np.where(own, SEGMENTS, 0)
    alone = solve_rows(name, x, solo, ROW_RATES, SHIFTS)
    sample = row, number, own[row]
    check_equal(of_sample(packed, *sample), of_sample(alone, *sample))
  if name == "heun":  # The last of them without rows or slots of others.
    one, rest = np.ones((1, 4), int), (ROW_RATES[1:, :1], SHIFTS[1:, :1])
    alone = solve_rows(name, x[1:, own[1]], one, *rest)
    alone = of_sample(alone, 0, 0, np.s_[:])
    check_equal(of_sample(packed, *sample), alone)


@pytest.mark.parametrize(
  ("times", "updated"),
  [
    ([[0.1, 0.9], [0.9, 0.1]], [[0, 0], [0, 0]]),
    ([[0.1, 0.5], [0.9, 0.1]], [[0, 1], [0, 0]]),
    ([[0.5, 0.5], [0.5, 0.5]], [[1, 1], [1, 1]]),
  ],
)
def test_the_unconditional_half_changes_only_where_guidance_acts(
  times, updated
):
  before, after = evaluate_once(np.array(times))
  changed = jax.tree.map(lambda a, b: np.asarray(a != b), after, before)
  np.testing.assert_array_equal(changed.samples["rate"][:2], 1)
  np.testing.assert_array_equal(changed.samples["rate"][2:], updated)
  slots = np.maximum(SEGMENTS - 1, 0)
  of_tokens = np.take_along_axis(np.array(updated), slots, axis=1)
  real = SEGMENTS > 0
  for half, expected in ((np.s_[:2], 1), (np.s_[2:], of_tokens)):
    expected = np.broadcast_to(expected, real.shape)[real]
    np.testing.assert_array_equal(changed.tokens[half][real], expected)
    for layer in changed.layers["key"][:, half]:
      np.testing.assert_array_equal(layer.all(-1)[real], expected)


@jax.jit
def evaluate_once(times):
  guidance = Guidance(2.0, 0.2, 0.7)
  velocity, _, before = branches(SEGMENTS, ROW_RATES + 1, guidance)
  return before, velocity(jnp.ones((2, 6, P)), times, before)[1]


def test_the_first_rows_of_a_memory_are_a_memory():
  memory = RowMemory(
    layers=np.arange(24).reshape(3, 4, 2),
    tokens=(np.arange(8).reshape(4, 2),),
    samples={"a": np.arange(4).reshape(4, 1)},
  )
  first = jax.jit(lambda memory: memory.first(2))(memory)
  assert [x.shape for x in jax.tree.leaves(first)] == [
    (3, 2, 2), (2, 2), (2, 1),
  ]  # fmt: skip
  first = jax.tree.map(np.negative, first)
  changed = jax.device_get(jax.jit(RowMemory.with_first)(memory, first))
  np.testing.assert_array_equal(changed.layers[:, :2], -memory.layers[:, :2])
  np.testing.assert_array_equal(changed.layers[:, 2:], memory.layers[:, 2:])
  np.testing.assert_array_equal(changed.samples["a"][:2, 0], [0, -1])
  np.testing.assert_array_equal(changed.samples["a"][2:, 0], [2, 3])
  assert jax.tree.structure(changed) == jax.tree.structure(memory)
  assert RowMemory().first(2) == RowMemory().with_first(RowMemory())


def solve_with(memory, velocity=None):
  x = jnp.ones((2, 6, P))
  layout = rows(SEGMENTS, SEGMENTS > 0, 2)
  velocity = velocity or (
    lambda x, t, memory: (-x, jax.tree.map(lambda m: m + 1, memory))
  )
  times = jnp.stack([jnp.zeros((2, 2)), jnp.ones((2, 2))])
  segment = Segment(velocity, times)
  solve = jax.jit(lambda x: run([segment], x, DormandPrince(), layout, memory))
  return solve(x)


@pytest.mark.parametrize(
  ("memory", "error", "message"),
  [
    ({"key": jnp.zeros((2, 6))}, TypeError, "must be a RowMemory, not dict"),
    (
      RowMemory(tokens=jnp.zeros((3, 6))),
      ValueError,
      "has 3 rows; expected 2, or that many per guidance branch",
    ),
  ],
)
def test_memories_of_an_unknown_layout_are_refused(memory, error, message):
  with pytest.raises(error, match=message):
    solve_with(memory)


def test_constants_need_no_layout():
  """Nothing selects among values that the velocity leaves unchanged."""

  def decay(x, t, memory):
    after = memory._replace(samples=memory.samples + 1)
    return -memory.layers["rate"].mean() * x, after

  rate = jnp.full((3, 1, 99), 2.0)
  memory = RowMemory(layers={"rate": rate}, samples=jnp.zeros((2, 2)))
  state = solve_with(memory, decay)
  np.testing.assert_array_equal(state.velocity_memory.layers["rate"], rate)
  assert (state.velocity_memory.samples > 0).all()
  np.testing.assert_allclose(state.x, np.exp(-2), rtol=1e-2)
