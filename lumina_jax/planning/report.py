"""Formats compiled jobs, suggestions and searches as text or JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.filesize import pick_unit_and_suffix

from lumina_jax.files.table import text_table
from lumina_jax.parallel.compiled import Program
from lumina_jax.planning.compiled_job import CompiledJob
from lumina_jax.planning.job import Job, count_parameters
from lumina_jax.planning.roofline import Roofline, roofline
from lumina_jax.planning.search import Search, format_flags
from lumina_jax.planning.suggestions import Suggestion

GIB, MIB = 2**30, 2**20
PREFIXES = ("", "k", "M", "G", "T", "P", "E")
NUMBERS = ("", " thousand", " million", " billion", " trillion")


def heading(job: Job) -> str:
  """The program, network, mesh and batch of a job."""
  tokens, words, samples = job.budget
  mesh = ", ".join(f"{axis} {n}" for axis, n in job.axis_sizes.items())
  program = "a guided sampler call" if job.sample else "a training step"
  twice = ", each evaluated twice for guidance" if job.sample else ""
  model, number = job.model, count_parameters(job.config)
  return f"""{program} on {job.topology.name}, {_plural(job.devices, "device")}
  network  {_scale(number, NUMBERS)} parameters, \
{model.dtype}, remat {model.remat}
  mesh     {mesh}
  batch    {_plural(job.rows, "row")} of {tokens:,} tokens and {words} words, \
{_plural(samples, "sample")} per row
           {_plural(job.rows_per_shard, "row")} per data x fsdp shard{twice}"""


def text(compiled: CompiledJob) -> str:
  """Memory, collectives, FLOPs, time bounds and the verdict."""
  blocks = [_memory(compiled)]
  if isinstance(compiled.result, Program):
    blocks += [_collectives(compiled.result), _work(compiled)]
  return "\n\n".join([*blocks, verdict(compiled)])


def verdict(compiled: CompiledJob) -> str:
  """One line: whether the job fits, and by how much."""
  if not compiled.usable:
    return "FITS: these devices have no memory limit"
  spare = compiled.usable - compiled.peak
  if compiled.fits:
    return f"FITS: {spare / GIB:.2f} GiB to spare on each device"
  return f"DOES NOT FIT: {-spare / GIB:.2f} GiB too much on each device"


def _memory(compiled: CompiledJob) -> str:
  arguments, result = compiled.arguments, compiled.result
  sizes = {"parameters": arguments.parameters}
  if not compiled.job.sample:
    sizes |= {"EMA": arguments.ema, "optimizer": arguments.optimizer}
  sizes["inputs"] = arguments.inputs
  rest = compiled.peak - sum(sizes.values())
  sizes["activations, gradients, temporaries"] = rest
  succeeded = isinstance(result, Program)
  sizes["peak" if succeeded else "requested, at least"] = compiled.peak
  if succeeded and result.host:
    sizes["host memory"] = result.host
  if compiled.usable:
    sizes["usable"] = compiled.usable
  unit, name = (GIB, "GiB") if compiled.peak > GIB / 8 else (MIB, "MiB")
  rows = [(f"  {label}", f"{n / unit:.2f}") for label, n in sizes.items()]
  return f"memory per device, {name}\n{text_table((), rows)}"


def _collectives(program: Program) -> str:
  rows = [
    (f"  {kind}", f"{traffic.count:,}", f"{_scale(traffic.sent)}B")
    for kind, traffic in program.traffic.items()
  ]
  kernels = f"{_plural(program.kernels, 'Pallas kernel')} in the program"
  table = text_table((), rows) if rows else "  none"
  return f"collectives: executions, bytes sent per device\n{table}\n{kernels}"


def _work(compiled: CompiledJob) -> str:
  flops = compiled.job.flops
  attention = 1 - flops.rest / flops.forward
  lines = [
    f"work: {_scale(_useful_flops(compiled.job))}FLOPs of matrix products in "
    f"the backbone, {attention:.0%} of them attention"
  ]
  if bound := roofline(compiled):
    rows = [(f"  {name}", f"{t:.4g} s") for name, t in bound.times.items()]
    lines += [
      text_table((), rows),
      f"at least {bound.seconds:.4g} s, at most {bound.mfu:.0%} MFU, limited "
      f"by {bound.bottleneck} (lower bounds, not measured)",
    ]
  return "\n".join(lines)


def suggestion_text(suggestion: Suggestion) -> str:
  """Flags to change, and the memory, time and cost that follow."""
  compiled = suggestion.compiled
  bound = roofline(compiled)
  rows = _plural(compiled.job.rows, "row")
  time = f", {rows} in at least {bound.seconds:.4g} s" if bound else ""
  return (
    f"  {suggestion.flags}\n      {compiled.peak / GIB:.2f} of "
    f"{compiled.usable / GIB:.2f} GiB{time}; {suggestion.cost}"
  )


def search_text(search: Search) -> str:
  """A table of the jobs that fit, fastest first."""
  lines = [
    f"{search.considered} combinations, {search.too_large} estimated as too "
    f"large, the {search.compiled} most promising compiled (--compiles), "
    f"{len(search.fitting)} fit"
  ]
  lines += [f"  failed to compile: {error}" for error in search.failed]
  if not search.fitting:
    return "\n".join(lines)
  header = "peak GiB", "batch", "s per step", "MFU <", "limit", "flags"
  rows = [
    (
      f"{compiled.peak / GIB:.2f}",
      str(compiled.job.rows),
      *_bound_cells(roofline(compiled)),
      format_flags(compiled.job),
    )
    for compiled in search.fitting
  ]
  lines += [
    text_table(header, rows, left=0),
    "Sorted by the least seconds per token: lower bounds, not measured. batch "
    "counts rows of all shards, --rows those of one.",
  ]
  return "\n".join(lines)


def _bound_cells(bound: Roofline | None) -> tuple[str, str, str]:
  if bound is None:
    return "-", "-", "-"
  return f"{bound.seconds:.4g}", f"{bound.mfu:.0%}", bound.bottleneck


def to_json(compiled: CompiledJob) -> dict[str, Any]:
  """A job as plain values; bytes per device, seconds."""
  job, result = compiled.job, compiled.result
  bound = roofline(compiled)
  succeeded = isinstance(result, Program)
  return {
    "topology": job.topology.name,
    "devices": job.devices,
    "program": "sample" if job.sample else "train",
    "mesh": job.axis_sizes,
    "remat": job.model.remat,
    "rows": job.rows,
    "rows_per_shard": job.rows_per_shard,
    "budget": job.budget,
    "parameters": count_parameters(job.config),
    "memory": dataclasses.asdict(compiled.arguments)
    | {"peak": compiled.peak, "usable": compiled.usable or None}
    | ({"host": result.host} if succeeded else {}),
    "collectives": {
      kind: dataclasses.asdict(traffic)
      for kind, traffic in (result.traffic if succeeded else {}).items()
    },
    "kernels": result.kernels if succeeded else None,
    "flops": _useful_flops(job),
    "roofline": bound
    and dataclasses.asdict(bound)
    | {
      "seconds": bound.seconds,
      "mfu": bound.mfu,
      "bottleneck": bound.bottleneck,
    },
    "fits": compiled.fits,
  }


def _useful_flops(job: Job) -> int:
  if job.sample:
    return job.flops.sample(job.forward_passes)
  return job.flops.train


def _plural(count: int, thing: str) -> str:
  return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _scale(number: float, suffixes: Sequence[str] = PREFIXES) -> str:
  """Four digits and a suffix: 5.4912e9 -> "5.491 G"."""
  unit, suffix = pick_unit_and_suffix(int(number), [*suffixes], 1000)
  separator = " " if suffixes is PREFIXES else ""
  return f"{number / unit:.4g}{separator}{suffix}"
