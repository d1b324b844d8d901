"""What is printed of a plan: for people, or as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from lumina_jax.parallel.compiled import Program
from lumina_jax.planning.bound import bound
from lumina_jax.planning.job import Job, parameters
from lumina_jax.planning.outcome import Outcome
from lumina_jax.planning.remedies import Remedy
from lumina_jax.planning.search import Search, describe

GIB, MIB = 2**30, 2**20


def heading(job: Job) -> str:
  """What is compiled, for what."""
  tokens, words, samples = job.budget
  mesh = ", ".join(f"{axis} {n}" for axis, n in job.degree.items())
  what = "a call of the sampler, guided" if job.sample else "a training step"
  twice = ", each twice for guidance" if job.sample else ""
  model = job.model
  return f"""{what} on {job.topology.name}, {_plural(job.devices, "device")}
  network  {_count(parameters(job.config))} parameters, \
{model.dtype}, remat {model.remat}
  mesh     {mesh}
  batch    {_plural(job.rows, "row")} of {tokens:,} tokens and {words} words, \
{_plural(samples, "sample")} a row
           {_plural(job.rows_each, "row")} a data x fsdp shard{twice}"""


def text(outcome: Outcome) -> str:
  """Memory, traffic, work, bounds and the verdict of one job."""
  blocks = [_memory(outcome)]
  if isinstance(outcome.result, Program):
    blocks += [_traffic(outcome.result), _work(outcome)]
  return "\n\n".join([*blocks, verdict(outcome)])


def verdict(outcome: Outcome) -> str:
  if not outcome.usable:
    return "FITS: these devices have no limit of their own"
  spare = outcome.usable - outcome.peak
  if outcome.fits:
    return f"FITS: {spare / GIB:.2f} GiB to spare on each device"
  return f"DOES NOT FIT: {-spare / GIB:.2f} GiB too much on each device"


def _memory(outcome: Outcome) -> str:
  parts, result = outcome.parts, outcome.result
  compiled = isinstance(result, Program)
  lines = {"parameters": parts.parameters}
  if not outcome.job.sample:
    lines |= {"average (EMA)": parts.average, "optimizer": parts.optimizer}
  lines["inputs"] = parts.inputs
  rest = outcome.peak - sum(lines.values())
  lines["activations, gradients, temporaries"] = rest
  lines["peak" if compiled else "asked for, at least"] = outcome.peak
  if compiled and result.host:
    lines["in the memory of the host"] = result.host
  unit, name = (GIB, "GiB") if outcome.peak > GIB / 8 else (MIB, "MiB")
  rows = [f"  {of:<36}{n / unit:9.2f}" for of, n in lines.items()]
  if outcome.usable:
    rows.append(f"  {'usable':<36}{outcome.usable / unit:9.2f}")
  return "\n".join([f"memory of a device, {name}", *rows])


def _traffic(program: Program) -> str:
  rows = [
    f"  {kind:<24}{traffic.count:>8,}{_si(traffic.sent):>12}B"
    for kind, traffic in program.traffic.items()
  ]
  kernels = f"{_plural(program.kernels, 'Pallas kernel')} in the program"
  head = "collectives: how many, bytes that a device sends"
  return "\n".join([head, *(rows or ["  none"]), kernels])


def _work(outcome: Outcome) -> str:
  job = outcome.job
  useful = job.flops.forward * job.passes if job.sample else job.flops.train
  share = 1 - job.flops.rest / job.flops.forward
  lines = [
    f"work: {_si(useful)}FLOPs of matrix products in the backbone, "
    f"{share:.0%} of it attention"
  ]
  if limit := bound(outcome):
    lines += [f"  {name:<12}{t:10.4g} s" for name, t in limit.times.items()]
    lines.append(
      f"at least {limit.seconds:.4g} s, at most {limit.mfu:.0%} MFU: "
      f"{limit.binds} binds (a bound, no measurement)"
    )
  return "\n".join(lines)


def remedy_text(remedy: Remedy) -> str:
  """What to change, and what it then takes."""
  outcome = remedy.outcome
  return (
    f"  {remedy.flags}\n      {outcome.peak / GIB:.2f} of "
    f"{outcome.usable / GIB:.2f} GiB{_at_best(outcome)}; {remedy.price}"
  )


def search_text(found: Search) -> str:
  """The table of what fits, fastest first."""
  said = (
    f"{found.considered} combinations, {found.too_large} of them too large as "
    f"estimated, the {found.compiled} most promising compiled (--compiles), "
    f"{len(found.fitting)} fit"
  )
  said = "\n".join([said, *(f"  not compiled: {x}" for x in found.failed)])
  if not found.fitting:
    return said
  head = f"{'peak GiB':>9}{'batch':>6}{'s a step':>10}{'MFU <':>7}  binds"
  lines = [said, head]
  for outcome in found.fitting:
    limit = bound(outcome)
    speed = f"{'-':>10}{'-':>7}  {'-':<10}"
    if limit:
      speed = f"{limit.seconds:10.4g}{limit.mfu:7.0%}  {limit.binds:<10}"
    lines.append(
      f"{outcome.peak / GIB:9.2f}{outcome.job.rows:6d}{speed}"
      f"  {describe(outcome.job)}"
    )
  return "\n".join(
    [
      *lines,
      "Fastest first, by the least seconds a token: bounds, no measurements. "
      "batch: rows of all shards; --rows: of one.",
    ]
  )


def json_of(outcome: Outcome) -> dict[str, Any]:
  """One job as plain values; bytes of a device, seconds."""
  job, result = outcome.job, outcome.result
  limit = bound(outcome)
  useful = job.flops.forward * job.passes if job.sample else job.flops.train
  compiled = isinstance(result, Program)
  return {
    "topology": job.topology.name,
    "devices": job.devices,
    "program": "sample" if job.sample else "train",
    "mesh": job.degree,
    "remat": job.model.remat,
    "rows": job.rows,
    "rows_each": job.rows_each,
    "budget": job.budget,
    "parameters": parameters(job.config),
    "memory": dataclasses.asdict(outcome.parts)
    | {"peak": outcome.peak, "usable": outcome.usable or None}
    | ({"host": result.host} if compiled else {}),
    "collectives": {
      kind: dataclasses.asdict(traffic)
      for kind, traffic in (result.traffic if compiled else {}).items()
    },
    "kernels": result.kernels if compiled else None,
    "flops": useful,
    "bound": limit
    and dataclasses.asdict(limit)
    | {"seconds": limit.seconds, "mfu": limit.mfu, "binds": limit.binds},
    "fits": outcome.fits,
  }


def _at_best(outcome: Outcome) -> str:
  limit = bound(outcome)
  if limit is None:
    return ""
  rows = _plural(outcome.job.rows, "row")
  return f", {rows} in at least {limit.seconds:.4g} s"


def _plural(count: int, thing: str) -> str:
  return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _count(number: int) -> str:
  for unit, word in ((1e9, "billion"), (1e6, "million")):
    if number >= unit:
      return f"{number / unit:.2f} {word}"
  return f"{number:,}"


def _si(number: float) -> str:
  """Three digits and a prefix: 5.49e9 -> "5.49 G"."""
  prefixes = ["", "k", "M", "G", "T", "P", "E"]
  while number >= 999.5 and len(prefixes) > 1:
    number, prefixes = number / 1000, prefixes[1:]
  return f"{number:.3g} {prefixes[0]}"
