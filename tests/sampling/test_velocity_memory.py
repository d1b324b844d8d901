"""A velocity that remembers, through the compiled sampler."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.configs import small_config

from lumina_jax.flow.samples import RowMemory, members
from lumina_jax.flow.solvers import get_solver
from lumina_jax.model.network import Constants, Network
from lumina_jax.sampling import program as programs
from lumina_jax.sampling import run
from lumina_jax.sampling.batch import make_batches
from lumina_jax.sampling.program import Program
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.times import time_grid
from lumina_jax.tokens import per_token

CONFIG = small_config()
SAMPLES = max(samples for *_, samples in CONFIG.sizes.ladder)


@dataclasses.dataclass(frozen=True)
class Remembering(Network):
  """v = w memory - r x, where r is the first code of the sample's prompt.

  Every evaluation adds to the memory of each layer, token and sample.
  """

  weight: float = 1.0

  def constants(self, params, condition):
    return Constants(condition, None)

  def first_memory(self, tokens, constants):
    rows, length = tokens.segments.shape
    samples = constants.condition.sample_ids.shape[1]
    return RowMemory(
      layers=(jnp.zeros((2, rows, length, 1)),),
      tokens={"sum": jnp.zeros((rows, length))},
      samples=jnp.zeros((rows, samples)),
    )

  def velocity(self, params, tokens, constants, memory):
    condition, segments = constants.condition, tokens.segments
    belongs = members(condition.text_segments, SAMPLES)
    rates = jnp.max(belongs * condition.text[..., :1], axis=1)
    counted = per_token(memory.samples[..., None], segments)
    remembered = memory.layers[0][1] + memory.tokens["sum"][..., None] + counted
    rates = per_token(rates[..., None], segments)
    v = self.weight * remembered - rates * tokens.patches
    v = jnp.where((segments != 0)[..., None], v, 0)
    mean = v.mean(-1)
    memory = RowMemory(
      layers=(memory.layers[0] + jnp.stack([mean, 2 * mean])[..., None],),
      tokens={"sum": memory.tokens["sum"] - mean},
      samples=memory.samples + 1,
    )
    return v, memory


NETWORK = Remembering(CONFIG.model, CONFIG.network.text_encoder)
# (shape, rate, rate of the negative prompt, scale) of samples in one row.
SMALL, LARGE, PLAIN = (
  ((8, 8), 1, 3, 2.0),
  ((8, 16), 4, 2, 3.0),
  ((8, 8), 2, 5, 1.0),
)


def request(number, shape, rate, negative, scale):
  width = CONFIG.network.code_width
  codes = [np.full((1, width), r, np.int32) for r in (rate, negative)]
  grid = CONFIG.model.grid(*shape)
  return Request("7", grid, *codes, number, 0, scale, natural=grid)


REQUESTS = [
  request(number, *sample)
  for number, sample in enumerate([SMALL, LARGE, PLAIN])
]


def batch(requests, **options):
  """One batch of requests; larger samples take their steps later."""
  options = dict(num_inference_steps=4, shift=2.0, shift_tokens=8) | options
  options = dataclasses.replace(CONFIG.sampling, **options)
  times = time_grid(options)
  (found,) = make_batches(requests, NETWORK, options, CONFIG.sizes, times)
  return found


def solved(batch, solver="euler", network=NETWORK):
  """The first and the last state of a batch, memory included."""
  program = Program(network, get_solver(solver, rtol=1e-3, atol=1e-6))
  first, constants = programs.begin({}, batch.inputs, program=program)
  last = programs.advance({}, batch.inputs, first, constants, program=program)
  return first, last


def reference(x, rates, scale, times, interval):
  """Euler's steps of one sample, written out.

  Returns:
    The solution, and of both branches the sums of layers and tokens, and the
    number of evaluations.
  """
  always, memory = interval == (0, 1), [np.zeros((len(x), 3)) for _ in rates]

  def velocity(branch):
    old = memory[branch]
    v = old.sum(-1, keepdims=True) - rates[branch] * x
    mean = v.mean(-1)
    memory[branch] = old + np.stack([2 * mean, -mean, np.ones_like(mean)], -1)
    return v

  for t, until in itertools.pairwise(times):
    acts = scale != 1 and interval[0] <= t < interval[1]
    v = velocity(0)
    if len(rates) > 1 and (always or acts):
      other = velocity(1)
      v = other + scale * (v - other)
    x = x + (until - t) * v
  return x, memory


def assert_remembers(place, state, rows, expected, branches=2):
  """Compares the solution and memory of a sample with the reference's."""
  x, memory = expected
  own = np.s_[place.start : place.stop]
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
  close(np.asarray(state.x)[place.row, own], x)
  found = state.velocity_memory
  for branch in range(branches):
    row = place.row + branch * rows
    layers, tokens, count = np.moveaxis(memory[branch], -1, 0)
    close(np.asarray(found.layers[0])[1, row, own, 0], layers)
    close(np.asarray(found.tokens["sum"])[row, own], tokens)
    assert found.samples[row, place.slot] == count[0]


@pytest.mark.parametrize(
  "interval", [(0.0, 1.0), (0.1, 0.4)], ids=["always", "interval"]
)
def test_both_branches_remember_while_guidance_acts_on_their_sample(interval):
  packed = batch(REQUESTS, guidance_interval=interval)
  assert len({place.row for place in packed.places}) == 1
  first, last = solved(packed)
  inputs = packed.inputs
  counts = []
  for place in packed.places:
    _, rate, negative, scale = (SMALL, LARGE, PLAIN)[place.number]
    x = np.asarray(first.x)[place.row, place.start : place.stop]
    times = inputs.times[:, place.row, place.slot].astype(float)
    expected = reference(x, (rate, negative), scale, times, interval)
    assert_remembers(place, last, len(inputs.seeds), expected)
    counts.append(int(expected[1][1][0, -1]))
  # The samples differ in when guidance acts on them.
  assert counts == ([4, 4, 4] if interval == (0, 1) else [1, 2, 0])


def test_without_guidance_there_is_one_branch():
  packed = batch([request(0, *SMALL[:3], 1.0), request(1, *LARGE[:3], 1.0)])
  first, last = solved(packed)
  assert packed.inputs.negative is None
  assert len(last.velocity_memory.samples) == len(packed.inputs.seeds)
  for place in packed.places:
    rate = (SMALL, LARGE)[place.number][1]
    x = np.asarray(first.x)[place.row, place.start : place.stop]
    times = packed.inputs.times[:, place.row, place.slot].astype(float)
    expected = reference(x, (rate,), 1.0, times, (0, 1))
    assert_remembers(place, last, 0, expected, branches=1)


def test_one_program_and_single_steps_remember_alike(monkeypatch):
  """Under callbacks the state, memory included, goes through the host."""
  states, advance = [], programs.advance

  def spy(params, inputs, state, constants, *, program):
    if not isinstance(inputs.seeds, jax.core.Tracer):  # One is within `sample`.
      states.append(state)
    return advance(params, inputs, state, constants, program=program)

  monkeypatch.setattr(run.programs, "advance", spy)
  components = types.SimpleNamespace(
    network=NETWORK, params={}, sizes=CONFIG.sizes
  )
  options = dataclasses.replace(
    CONFIG.sampling, num_inference_steps=4, guidance_interval=(0.3, 0.6)
  )
  solve = functools.partial(
    run.solve, components, REQUESTS, options, time_grid(options)
  )
  ((whole,), (watched,)) = list(solve()), list(solve(on_step=lambda step: {}))
  for number, result in whole.items():
    np.testing.assert_allclose(
      watched[number].sample, result.sample, rtol=1e-5, atol=1e-5
    )
  counts = [state.velocity_memory.samples[0, 0] for state in states]
  assert counts == [0, 1, 2, 3]
  assert all(isinstance(s.velocity_memory.samples, np.ndarray) for s in states)


def test_steps_that_dopri5_rejects_are_forgotten_by_their_sample_alone():
  """A sample in a row has the solution and memory that it has alone."""
  # Adaptive steps suit velocities that change little between evaluations.
  solve = functools.partial(
    solved, solver="dopri5", network=dataclasses.replace(NETWORK, weight=1e-4)
  )
  stiff = dataclasses.replace(REQUESTS[1], text=20 * REQUESTS[0].text)
  both = [REQUESTS[0], stiff]
  packed = batch(both)
  _, last = solve(packed)
  rows, counts = len(packed.inputs.seeds), []
  for place in packed.places:
    single = batch([both[place.number]])
    _, alone = solve(single)
    np.testing.assert_allclose(
      packed.unpack(np.asarray(last.x))[place.number],
      single.unpack(np.asarray(alone.x))[0],
      rtol=1e-4,
      atol=1e-4,
    )
    for branch in (0, rows):
      found = last.velocity_memory.samples[place.row + branch, place.slot]
      assert found == alone.velocity_memory.samples[branch, 0]
    counts.append(int(found))
  # 6 evaluations of each step that was accepted; the others are forgotten.
  assert all(count % 6 == 0 for count in counts)
  assert counts[0] < counts[1] < alone.evaluations - 1


@dataclasses.dataclass(frozen=True)
class Group:
  ratio: float


def test_groups_are_static_and_values_are_not():
  """Another group compiles another program; an equal one does not."""
  inputs = batch(REQUESTS).inputs
  program = Program(NETWORK, get_solver("euler"), (Group(0.5),))
  programs.sample({}, inputs, program=program)
  before = programs.sample._cache_size()
  same = dataclasses.replace(program, groups=(Group(0.5),))
  for scale in (1.5, 3.0):
    other = batch(
      [dataclasses.replace(r, guidance_scale=scale) for r in REQUESTS]
    )
    programs.sample({}, other.inputs, program=same)
  assert programs.sample._cache_size() == before
  another = dataclasses.replace(program, groups=(Group(0.25),))
  programs.sample({}, inputs, program=another)
  assert programs.sample._cache_size() == before + 1


def test_the_last_state_of_a_call_holds_no_memory():
  program = Program(NETWORK, get_solver("euler"))
  inputs = batch(REQUESTS).inputs
  state = programs.sample({}, inputs, program=program)
  assert state.velocity_memory == state.solver_memory == ()
  _, last = solved(batch(REQUESTS))
  np.testing.assert_allclose(state.x, last.x, rtol=1e-5, atol=1e-5)
