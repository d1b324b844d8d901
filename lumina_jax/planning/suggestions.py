"""Suggests changes that make a job fit: each compiled, cheapest first."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from lumina_jax.parallel import chips, topology
from lumina_jax.planning.compiled_job import CompiledJob, compile_job
from lumina_jax.planning.job import Job, default_mesh_shape
from lumina_jax.planning.memory import expected_bytes, minimum_bytes
from lumina_jax.planning.search import estimated_seconds, mesh_flag, mesh_shapes

MAX_SUGGESTIONS = 3
MAX_COMPILATIONS = 10
MAX_MESHES, MAX_SLICES = 2, 4  # candidates of a kind
# Share of the estimated activations that a candidate surely needs. Low, so that
# no candidate is dropped too early.
CERTAIN = 0.5
REMAT_LEVELS = ("none", "attention", "full")  # from most to least memory


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """A change after which the job fits.

  Attributes:
    flags: flags to add to the command.
    cost: what it costs, in words.
    compiled: the changed job.
  """

  flags: str
  cost: str
  compiled: CompiledJob


def suggestions(
  refused: CompiledJob, show: Callable[[int, str], None] = lambda *_: None
) -> Iterator[Suggestion]:
  """Yields the cheapest changes after which a job fits, each compiled.

  Args:
    refused: a job that does not fit.
    show: called with the number of compilations and the flags of the next.
  """
  found = compilations = 0
  for flags, cost, candidate in candidates(refused.job):
    if hopeless(candidate, refused):
      continue
    if found == MAX_SUGGESTIONS or compilations == MAX_COMPILATIONS:
      break
    show(compilations, flags)
    compilations += 1
    try:
      compiled = compile_job(candidate)
    except jax.errors.JaxRuntimeError:
      continue  # Another candidate may compile.
    if compiled.fits:
      found += 1
      yield Suggestion(flags, cost, compiled)


def hopeless(candidate: Job, refused: CompiledJob) -> bool:
  """Whether a candidate is so far from fitting that compiling it is a waste.

  Either its estimated memory is too large. Or, with the same remat, so is its
  state plus a part of what the refused job took beside its state, scaled by the
  tokens per device.
  """
  usable, job = candidate.topology.chip.usable or math.inf, refused.job
  if expected_bytes(candidate) > usable:
    return True
  if candidate.model.remat != job.model.remat:
    return False
  tokens = candidate.device_tokens / candidate.axis_sizes["tensor"]
  ratio = tokens / (job.device_tokens / job.axis_sizes["tensor"])
  state = refused.arguments.state * math.prod(job.mesh_shape[1:])
  activations = refused.peak - refused.arguments.state
  # They include gradients, which shrink with the state.
  local_state = state / math.prod(candidate.mesh_shape[1:])
  return local_state + CERTAIN * ratio * activations > usable


def candidates(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Yields (flags, cost, job) from the cheapest to the most costly change."""
  remat = job.model.remat
  if not job.sample and remat in REMAT_LEVELS:
    for name in REMAT_LEVELS[REMAT_LEVELS.index(remat) + 1 :]:
      cost = "more recomputation in the backward pass"
      yield f"--remat={name}", cost, job.replace(remat=name)
  rows = job.rows_per_shard
  while rows > 1:
    rows //= 2
    yield f"--rows={rows}", "a smaller batch", job.replace(rows_per_shard=rows)
  yield from _other_meshes(job)
  if not job.sample and remat != "offload_hidden":
    yield (
      "--remat=offload_hidden",
      "saved activations travel to the host and back",
      job.replace(remat="offload_hidden"),
    )
  yield from _larger_slices(job)


def _other_meshes(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Meshes of the same machine that need less memory, fastest first."""
  current = minimum_bytes(job), job.device_tokens
  smaller = []
  for shape in mesh_shapes(job):
    other = job.replace(mesh_shape=shape, rows_per_shard=job.rows_per_shard)
    need = minimum_bytes(other), other.device_tokens
    if need != current and all(
      a <= b for a, b in zip(need, current, strict=True)
    ):
      smaller.append(other)
  for other in sorted(smaller, key=estimated_seconds)[:MAX_MESHES]:
    yield mesh_flag(other), "other traffic, the same rows per shard", other


def _larger_slices(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Larger slices of the same chip, with their default meshes."""
  chip = job.topology.chip
  for shape in chips.larger_slices(chip, job.topology.chips)[:MAX_SLICES]:
    name = f"{chip.name}:{shape}"
    machine = topology.find(name)
    mesh_shape = default_mesh_shape(
      job.config, len(machine.devices), tokens=job.budget[0]
    )
    other = job.replace(
      topology=machine, mesh_shape=mesh_shape, rows_per_shard=job.rows_per_shard
    )
    yield f"--topology={name} {mesh_flag(other)}", "more chips", other
