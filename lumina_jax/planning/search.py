"""Searches meshes, remat policies and rows per shard for the fastest that fit.

Estimates every combination and compiles only the most promising ones, with at
most one that fits per mesh.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator

import jax

from lumina_jax.backbone.remat import POLICIES
from lumina_jax.planning.compiled_job import CompiledJob, compile_job
from lumina_jax.planning.job import Job, count_parameters, max_parameter_shards
from lumina_jax.planning.memory import (
  expected_bytes,
  minimum_bytes,
  state_bytes,
)
from lumina_jax.planning.roofline import estimate, roofline

ROWS = (1, 2, 4, 8)  # per shard
MAX_TENSOR = 8
MIN_TOKENS = 1024  # per device, where context splits a row
# Assumed share of extra time for offloading, since the speed of the links
# between chip and host is not published.
OFFLOADING = 0.1
# The policy that keeps on the device what an offloading one moves to the host.
ON_DEVICE = {"offload_hidden": "full", "offload_attention": "attention"}


@dataclasses.dataclass(frozen=True)
class Search:
  """The result of a search.

  Attributes:
    fitting: jobs that fit, fastest first by their bound per token.
    compiled: number of compilations.
    considered: number of combinations.
    too_large: number of combinations whose estimated memory is too large.
    failed: flags and compiler errors of jobs that failed to compile.
  """

  fitting: tuple[CompiledJob, ...]
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
  """Compiles the most promising variants of a job on its machine.

  Follows `estimated_seconds`, shortest first. After a variant fits, the other
  variants of its mesh are skipped, since they are slower. After one does not
  fit, those of its mesh that need more memory are skipped.

  Args:
    job: the job whose mesh, rows and remat are varied.
    limit: most compilations.
    show: called with the number of compilations and the flags of the next.
    fixed: those of "mesh", "remat" and "rows" that stay as they are.
  """
  every = [*variants(job, fixed)]
  usable = job.topology.chip.usable or math.inf
  possible = [j for j in every if expected_bytes(j) <= usable]
  waiting = sorted(possible, key=estimated_seconds)
  pruned, results, failed = len(every) - len(waiting), [], []
  while waiting and len(results) + len(failed) < limit:
    best = waiting.pop(0)
    show(len(results) + len(failed), format_flags(best))
    try:
      compiled = compile_job(best)
    except jax.errors.JaxRuntimeError as error:
      failed.append(f"{format_flags(best)}: {str(error).splitlines()[0]}")
      continue
    results.append(compiled)
    waiting = [
      other
      for other in waiting
      if other.mesh_shape != best.mesh_shape
      or (not compiled.fits and expected_bytes(other) < expected_bytes(best))
    ]
  tried = len(results) + len(failed)
  show(tried, "")
  fitting = sorted((r for r in results if r.fits), key=seconds_per_token)
  return Search(tuple(fitting), tried, len(every), pruned, tuple(failed))


def variants(job: Job, fixed: Collection[str] = ()) -> Iterator[Job]:
  """The same work on every mesh, with every policy and number of rows."""
  keep = job.sample or "remat" in fixed
  policies = (job.model.remat,) if keep else POLICIES
  rows = (job.rows_per_shard,) if "rows" in fixed else ROWS
  shapes = [job.mesh_shape] if "mesh" in fixed else mesh_shapes(job)
  for shape, remat, n in itertools.product(shapes, policies, rows):
    yield job.replace(mesh_shape=shape, remat=remat, rows_per_shard=n)


def mesh_shapes(job: Job) -> Iterator[tuple[int, int, int, int]]:
  """All meshes of the machine that the network divides over."""
  shards, tokens = max_parameter_shards(job.config), job.budget[0]
  heads = math.gcd(job.model.heads, job.model.kv_heads)
  for tensor in _divisors(math.gcd(job.devices, heads)):
    for context in _divisors(math.gcd(job.devices // tensor, tokens)):
      too_short = context > 1 and tokens // context < MIN_TOKENS
      if tensor > MAX_TENSOR or too_short:
        continue
      rest = job.devices // (tensor * context)
      for fsdp in _divisors(rest):
        if shards % (fsdp * context) == 0:
          yield rest // fsdp, fsdp, context, tensor


def estimated_seconds(job: Job) -> float:
  """Estimated seconds per row, without any overlap.

  For a chip without a known peak: bytes of the state and of traffic.
  """
  # Offloading costs what the policy without it costs, and the transfer.
  offloads = job.model.remat.startswith("offload")
  local = job.replace(remat=ON_DEVICE.get(job.model.remat, job.model.remat))
  sent = estimated_traffic(local)
  times = estimate(local, sent, 2 * state_bytes(local))
  if times is None:
    return (sent + minimum_bytes(local)) * (1 + offloads) / job.rows
  return sum(times.times.values()) * (1 + OFFLOADING * offloads) / job.rows


def estimated_traffic(job: Job) -> float:
  """Estimated bytes that a device sends.

  Each pass gathers the bfloat16 weights, and training reduce-scatters their
  gradients; float32 gradients are summed over data; tensor sums the residual
  stream twice per block and pass; context exchanges queries, keys, values and
  outputs.
  """
  data, fsdp, context, tensor = job.mesh_shape
  shards = fsdp * context
  count = count_parameters(job.config) / tensor
  recomputes = not job.sample and job.model.remat != "none"
  passes = job.forward_passes if job.sample else 2 + recomputes
  gathered = 2 * count * (passes + (not job.sample))
  total = gathered * _share(shards)
  if not job.sample:
    total += 2 * 4 * count / shards * _share(data)
  stream = 2 * job.model.depth * job.device_tokens * job.model.width * passes
  return total + 4 * stream * (_share(tensor) + _share(context) / tensor)


def seconds_per_token(compiled: CompiledJob) -> float:
  """The bound of the time per token; bytes where the peak is unknown."""
  bound = roofline(compiled)
  tokens = compiled.job.rows * compiled.job.budget[0]
  return (bound.seconds if bound else compiled.peak) / tokens


def mesh_flag(job: Job) -> str:
  """The mesh of a job, as a flag."""
  sizes = ",".join(f"{axis}={n}" for axis, n in job.axis_sizes.items())
  return f"--mesh={sizes}"


def format_flags(job: Job) -> str:
  """The mesh, remat and rows of a job, as flags."""
  remat, rows = job.model.remat, job.rows_per_shard
  return f"{mesh_flag(job)} --remat={remat} --rows={rows}"


def _share(n: int) -> float:
  return (n - 1) / n


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
