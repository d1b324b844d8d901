"""What to change where a job does not fit: each compiled, cheapest first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from lumina_jax.parallel import chips, topology
from lumina_jax.planning.job import Job, default_degrees
from lumina_jax.planning.outcome import (
  Outcome,
  compile_job,
  expected_bytes,
  state_bytes,
)
from lumina_jax.planning.search import cost, meshes

ENOUGH = 3  # remedies that fit
MOST = 10  # compilations
MESHES, SLICES = 2, 4  # of a kind at the most
LEAST = 0.5  # of what is estimated: nothing is given up too early
STRONGER = ("none", "attention", "full")  # Each keeps less than the one before.


@dataclasses.dataclass(frozen=True)
class Remedy:
  """What to change, and what became of it.

  Attributes:
    flags: to type instead.
    price: what it costs, in words.
    outcome: of the job so changed.
  """

  flags: str
  price: str
  outcome: Outcome


def remedies(
  refused: Outcome, show: Callable[[int, str], None] = lambda *_: None
) -> Iterator[Remedy]:
  """Yields the cheapest changes after which a job fits, each compiled.

  Args:
    refused: the job that does not fit.
    show: is told how many were compiled and what comes next.
  """
  found = compiled = 0
  for flags, price, other in candidates(refused.job):
    if hopeless(other, refused):
      continue
    if found == ENOUGH or compiled == MOST:
      break
    show(compiled, flags)
    compiled += 1
    try:
      outcome = compile_job(other)
    except jax.errors.JaxRuntimeError:
      continue  # No remedy, whatever it is; the next may be one.
    if outcome.fits:
      found += 1
      yield Remedy(flags, price, outcome)


def hopeless(other: Job, refused: Outcome) -> bool:
  """Whether a change is far from enough, so that compiling it is no use.

  It may be too large as estimated; or with the same remat, by what the refused
  one took beside its state, less in proportion to the tokens of a device.
  """
  usable, job = other.topology.chip.usable or math.inf, refused.job
  if expected_bytes(other) > usable:
    return True
  if other.model.remat != job.model.remat:
    return False
  tokens = other.local_tokens / other.degree["tensor"]
  share = tokens / (job.local_tokens / job.degree["tensor"])
  state = refused.parts.state * math.prod(job.degrees[1:])
  beside = refused.peak - refused.parts.state
  # A part of it are gradients, which shrink with the state.
  return state / math.prod(other.degrees[1:]) + LEAST * share * beside > usable


def candidates(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Yields (flags, price, job), from the cheapest change to the dearest."""
  remat = job.model.remat
  if not job.sample and remat in STRONGER:
    for name in STRONGER[STRONGER.index(remat) + 1 :]:
      price = "more is computed a second time"
      yield f"--remat={name}", price, job.change(remat=name)
  rows = job.rows_each
  while rows > 1:
    rows //= 2
    yield f"--rows={rows}", "a smaller batch", job.change(rows_each=rows)
  yield from _other_meshes(job)
  if not job.sample and remat != "offload_hidden":
    yield (
      "--remat=offload_hidden",
      "what is kept travels to the host and back",
      job.change(remat="offload_hidden"),
    )
  yield from _larger_slices(job)


def _other_meshes(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Meshes of the same machine that leave less on a device, fastest first."""
  now = state_bytes(job), job.local_tokens
  smaller = []
  for degrees in meshes(job):
    other = job.change(degrees=degrees, rows_each=job.rows_each)
    need = state_bytes(other), other.local_tokens
    if need != now and all(a <= b for a, b in zip(need, now, strict=True)):
      smaller.append(other)
  for other in sorted(smaller, key=cost)[:MESHES]:
    mesh = ",".join(f"{axis}={n}" for axis, n in other.degree.items())
    yield f"--mesh={mesh}", "other traffic, and as many rows a shard", other


def _larger_slices(job: Job) -> Iterator[tuple[str, str, Job]]:
  """Slices of the same chip, with the mesh that the rule gives them."""
  chip = job.topology.chip
  for shape in chips.larger(chip, job.topology.chips)[:SLICES]:
    name = f"{chip.name}:{shape}"
    machine = topology.find(name)
    degrees = default_degrees(
      job.config, len(machine.devices), tokens=job.budget[0]
    )
    other = job.change(
      topology=machine, degrees=degrees, rows_each=max(1, job.rows_each)
    )
    mesh = ",".join(f"{axis}={n}" for axis, n in other.degree.items())
    yield f"--topology={name} --mesh={mesh}", "more chips", other
