"""Meshes x remat x rows of a shard: which fit, and which is fastest at best.

What each would take is estimated first; only the most promising are compiled,
at most one that fits for each mesh.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator

import jax

from lumina_jax.backbone.remat import POLICIES
from lumina_jax.planning.bound import Bound, bound, of_job
from lumina_jax.planning.job import Job, parameter_ways, parameters
from lumina_jax.planning.outcome import (
  Outcome,
  compile_job,
  expected_bytes,
  kept_bytes,
  state_bytes,
)

ROWS = (1, 2, 4, 8)  # of a shard
TENSOR = 8  # Devices of one feed-forward at the most.
TOKENS = 1024  # of a device at the least, where a row is split
# Nobody publishes how fast a chip's host is. Its memory costs something.
OFFLOADING = 0.1
TWINS = {"offload_hidden": "full", "offload_attention": "attention"}


@dataclasses.dataclass(frozen=True)
class Search:
  """What was found.

  Attributes:
    fitting: those that fit, fastest first by their bound a token.
    compiled: how many were compiled.
    considered: how many there are.
    too_large: how many of them cannot fit by what is estimated.
    failed: what the compiler said of those that it could not compile.
  """

  fitting: tuple[Outcome, ...]
  compiled: int
  considered: int
  too_large: int
  failed: tuple[str, ...] = ()


def search(
  job: Job,
  limit: int,
  show: Callable[[int, str], None] = lambda *_: None,
  fixed: Collection[str] = (),
) -> Search:
  """Compiles the most promising jobs of the same machine and length of row.

  Best first by `cost`. Once a mesh has one that fits, its others are left out,
  since they are slower; once one does not fit, so are those of its mesh that
  need more.

  Args:
    job: whose mesh, rows and remat are varied.
    limit: compilations at the most.
    show: is told how many were compiled and what comes next.
    fixed: of "mesh", "remat" and "rows", what stays as it is.
  """
  every = [*variants(job, fixed)]
  usable = job.topology.chip.usable or math.inf
  possible = [j for j in every if expected_bytes(j) <= usable]
  waiting = sorted(possible, key=cost)
  pruned, outcomes, failed = len(every) - len(waiting), [], []
  while waiting and len(outcomes) + len(failed) < limit:
    best = waiting.pop(0)
    show(len(outcomes) + len(failed), describe(best))
    try:
      outcome = compile_job(best)
    except jax.errors.JaxRuntimeError as error:
      failed.append(f"{describe(best)}: {str(error).splitlines()[0]}")
      continue
    outcomes.append(outcome)
    least = math.inf if outcome.fits else expected_bytes(best)
    waiting = [
      other
      for other in waiting
      if other.degrees != best.degrees
      or (not outcome.fits and expected_bytes(other) < least)
    ]
  tried = len(outcomes) + len(failed)
  show(tried, "")
  fitting = sorted((o for o in outcomes if o.fits), key=time_of_a_token)
  return Search(tuple(fitting), tried, len(every), pruned, tuple(failed))


def variants(job: Job, fixed: Collection[str] = ()) -> Iterator[Job]:
  """The same work on every mesh, with every policy and number of rows."""
  same = job.sample or "remat" in fixed
  policies = (job.model.remat,) if same else POLICIES
  each = (job.rows_each,) if "rows" in fixed else ROWS
  for degrees in [job.degrees] if "mesh" in fixed else meshes(job):
    for remat in policies:
      for rows in each:
        yield job.change(degrees=degrees, remat=remat, rows_each=rows)


def meshes(job: Job) -> Iterator[tuple[int, int, int, int]]:
  """Degrees of all meshes of the machine that the network divides over."""
  ways, tokens = parameter_ways(job.config), job.budget[0]
  heads = math.gcd(job.model.heads, job.model.kv_heads)
  for tensor in _divisors(math.gcd(job.devices, heads)):
    for context in _divisors(math.gcd(job.devices // tensor, tokens)):
      if tensor > TENSOR or (context > 1 and tokens // context < TOKENS):
        continue
      rest = job.devices // (tensor * context)
      for fsdp in _divisors(rest):
        if ways % (fsdp * context) == 0:
          yield rest // fsdp, fsdp, context, tensor


def cost(job: Job) -> float:
  """Seconds of a row as estimated, as if nothing ran side by side.

  Without a known peak: bytes of the state and of what is sent.
  """
  # What waits on the host is as if it waited here, and then it travels.
  travels = job.model.remat.startswith("offload")
  twin = job.change(remat=TWINS.get(job.model.remat, job.model.remat))
  sent = estimated_traffic(twin)
  estimate = of_job(twin, sent, 2 * kept_bytes(twin))
  if estimate is None:
    return (sent + state_bytes(twin)) * (1 + travels) / job.rows
  return sum(estimate.times.values()) * (1 + OFFLOADING * travels) / job.rows


def estimated_traffic(job: Job) -> float:
  """Bytes that a device sends, before any program says so.

  Weights of bfloat16 are gathered in each pass and their gradients scattered;
  gradients in float32 are summed over data; tensor sums the stream twice a
  block and pass, context moves queries, keys, values and outputs.
  """
  data, fsdp, context, tensor = job.degrees
  spread = fsdp * context
  count = parameters(job.config) / tensor
  again = not job.sample and job.model.remat != "none"
  passes = job.passes if job.sample else 2 + again
  gathered = 2 * count * (passes + (not job.sample))
  total = gathered * _share(spread)
  if not job.sample:
    total += 2 * 4 * count / spread * _share(data)
  stream = 2 * job.model.depth * job.local_tokens * job.model.width * passes
  return total + 4 * stream * (_share(tensor) + _share(context) / tensor)


def time_of_a_token(outcome: Outcome) -> float:
  """Seconds a token at the best; without a peak, bytes."""
  limit: Bound | None = bound(outcome)
  each = outcome.job.rows * outcome.job.budget[0]
  return (limit.seconds if limit else outcome.peak) / each


def describe(job: Job) -> str:
  """The mesh, rows and remat of a job, as flags."""
  mesh = ",".join(f"{axis}={n}" for axis, n in job.degree.items())
  return f"--mesh={mesh} --remat={job.model.remat} --rows={job.rows_each}"


def _share(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
