"""Generates samples batch by batch, in one program or step by step."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lumina_jax.flow.adaptive import DormandPrince
from lumina_jax.flow.ode import State
from lumina_jax.flow.solvers import for_path
from lumina_jax.model.network import Params
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import divisors
from lumina_jax.sampling import overrides
from lumina_jax.sampling import program as programs
from lumina_jax.sampling.batch import Batch, make_batches
from lumina_jax.sampling.callbacks import LATENTS, TEXTS, OnStep, Step
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions, configured_solver
from lumina_jax.sampling.output import check_finite
from lumina_jax.sampling.program import Program
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.times import TimeGrid


class Result(NamedTuple):
  """A generated sample.

  Attributes:
    sample: latents or decoded, `f32[*shape, C]`.
    evaluations: of the velocity, in the sample's batch.
    behind: whether the solver gave up before the end.
  """

  sample: np.ndarray
  evaluations: int
  behind: bool = False


def run(
  components: Components,
  requests: Sequence[Request],
  options: SamplingOptions,
  times: TimeGrid,
  on_step: OnStep | None = None,
  progress: Callable[[int, int], None] | None = None,
  decode: bool = True,
) -> list[Result]:
  """Generates the samples of a call.

  Several processes call it with the same arguments, each samples on its devices
  of the mesh, and all receive all results.

  Args:
    components: network, codec and mesh.
    requests: the samples.
    options: how to sample.
    times: time grid of the solver.
    on_step: called after each step.
    progress: called after each batch with the numbers done and in all.
    decode: whether the codec decodes latents.

  Returns:
    The results in the order of the requests.

  Raises:
    FloatingPointError: naming a sample that is not finite, or that an adaptive
      solver gave up.
  """
  results: dict[int, Result] = {}
  with components.devices():
    requests = _encode_initial(components, requests)
    for finished in solve(components, requests, options, times, on_step):
      for number, result in finished.items():
        request = requests[number]
        name = f"sample {number} ({request.prompt!r}, seed {request.seed})"
        _check(result, name, options, components.network.model.dtype)
        if decode and components.codec is not None:
          sample = _decode(components.codec, result.sample, name)
          result = result._replace(sample=sample)
        results[number] = result
      if progress:
        progress(len(results), len(requests))
  return [results[number] for number in range(len(requests))]


def solve(
  components: Components,
  requests: Sequence[Request],
  options: SamplingOptions,
  times: TimeGrid,
  on_step: OnStep | None = None,
) -> Iterator[dict[int, Result]]:
  """Solves for every request.

  Args:
    components: network and sizes; the mesh is in force already.
    requests: the samples.
    options: how to sample.
    times: time grid of the solver.
    on_step: called after each step; the host then waits for each, and a program
      of one step runs instead of one of all of them.

  Yields:
    For each batch, latents by the number of their request.
  """
  network = components.network
  solver = for_path(
    configured_solver(options), network.objective.probability_path
  )
  program = Program(network, solver, overrides.groups(options))
  for batch in make_batches(
    requests, network, options, components.sizes, times, divisors()
  ):
    if on_step is None:
      params = components.params
      state = programs.sample(params, batch.inputs, program=program)
    else:
      state = _stepwise(components.params, program, batch, on_step)
    state = processes.gather(state)
    evaluations, behind = int(state.evaluations), batch.per_sample(state.behind)
    yield {
      number: Result(latents, evaluations, bool(behind[number]))
      for number, latents in batch.unpack(state.x).items()
    }


def _stepwise(
  params: Params, program: Program, batch: Batch, on_step: OnStep
) -> State:
  inputs, times = batch.inputs, batch.inputs.times
  intervals = list(itertools.pairwise(times))
  if isinstance(program.solver, DormandPrince):  # It chooses its own steps.
    solver = dataclasses.replace(program.solver, tries=1)
    program = dataclasses.replace(program, solver=solver)
    intervals = itertools.repeat((times[0], times[-1]))
  state, constants = programs.begin(params, inputs, program=program)
  for number, interval in enumerate(intervals):
    # From the host each time: arrays on a device would compile anew.
    state = processes.gather(state)
    step = inputs._replace(times=np.stack(interval))
    state = programs.advance(params, step, state, constants, program=program)
    state = processes.gather(state)
    changed = on_step(_step(number, state, batch))
    if LATENTS in changed:
      state = state._replace(x=batch.pack(changed[LATENTS]))
    if np.any(state.behind) or np.all(state.time == times[-1]):
      break
    for name in TEXTS.keys() & changed.keys():
      batch = batch.with_text(TEXTS[name], changed[name])
    if TEXTS.keys() & changed.keys():
      inputs = batch.inputs
      constants = programs.constants(params, inputs, program=program)
  return state


def _step(number: int, state: State, batch: Batch) -> Step:
  tensors = {LATENTS: batch.unpack(state.x)}
  if batch.network.frozen_text:
    tensors |= batch.texts()
  return Step(number, batch.per_sample(state.time), tensors)


def _check(
  result: Result, name: str, options: SamplingOptions, dtype: str
) -> None:
  check_finite(result.sample, name, dtype)
  if result.behind:
    raise FloatingPointError(
      f"{name}: {options.solver} did not finish within {result.evaluations} "
      "evaluations; allow larger errors by rtol and atol, or choose a solver "
      "with fixed steps"
    )


def _decode(codec, latents: np.ndarray, name: str) -> np.ndarray:
  with processes.use_mesh_of(codec.params):
    sample = codec.decode(latents)
  sample = processes.gather(sample)
  check_finite(sample, f"{name}, decoded", codec.cfg.dtype)
  return sample


def _encode_initial(
  components: Components, requests: Sequence[Request]
) -> Sequence[Request]:
  """Requests with latents of their initial samples, each encoded once."""
  codec = components.codec
  if codec is None or requests[0].initial is None:
    return requests
  samples = {id(r.initial): r.initial for r in requests}
  with processes.use_mesh_of(codec.params):
    latents = {
      key: processes.gather(codec.encode(sample))
      for key, sample in samples.items()
    }
  return [
    dataclasses.replace(r, initial=latents[id(r.initial)]) for r in requests
  ]
