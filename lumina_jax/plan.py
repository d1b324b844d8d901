"""What a run takes of a machine: python -m lumina_jax.plan --topology=v5e:4x4

Compiles the real training step (or with --sample a call of the sampler) for a
machine that need not be there and prints memory, collectives, work, and the
least time a step can take; if it does not fit, what does.

  python -m lumina_jax.plan --config=configs/text_to_image.py:flag_5b \\
    --topology=v5e:4x4 --tokens=4096
  python -m lumina_jax.plan ... --search     which mesh, remat and rows fit

Topologies: v5e:4x4, v5p:2x2x1, v6e:2x4, v7x:2x2x1, on any Linux machine with
libtpu (pip install -r requirements-tpu.txt); cpu:8; gpu, those of this machine.
Exit codes: 0 it fits, 1 it does not, 2 bad input, 3 the compiler failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
from absl import app, flags

from lumina_jax.commands import config_flag
from lumina_jax.commands import start as entry_point
from lumina_jax.files.progress import Progress
from lumina_jax.parallel import topology
from lumina_jax.parallel.mesh import MeshConfig
from lumina_jax.planning import report
from lumina_jax.planning.job import Job, make_job
from lumina_jax.planning.outcome import compile_job
from lumina_jax.planning.remedies import MOST, remedies
from lumina_jax.planning.search import search
from lumina_jax.training import run_config

FITS, TOO_LARGE, BAD_INPUT, COMPILER, INTERRUPTED = 0, 1, 2, 3, 130


def plan(job: Job, with_remedies: bool, as_json: bool) -> bool:
  """Compiles a job, prints what it takes and, if it does not fit, remedies."""
  if not as_json:
    print(f"{report.heading(job)}\n\ncompiling ...", flush=True)
  outcome = compile_job(job)
  if not as_json:
    print(f"\n{report.text(outcome)}", flush=True)
  found = []
  if with_remedies and not outcome.fits:
    with _progress("trying what would fit", MOST, as_json) as show:
      for remedy in remedies(outcome, show):
        found.append(remedy)
        if not as_json:
          print(f"fits:\n{report.remedy_text(remedy)}", flush=True)
    if not found and not as_json:
      print("Nothing that was tried instead fits; see --search")
  if as_json:
    others = [
      {"flags": remedy.flags, "price": remedy.price}
      | report.json_of(remedy.outcome)
      for remedy in found
    ]
    print(json.dumps(report.json_of(outcome) | {"remedies": others}))
  return outcome.fits


def look_around(job: Job, limit: int, fixed: set[str], as_json: bool) -> bool:
  """Prints which meshes, policies and rows fit; whether any does."""
  with _progress("searching", limit, as_json) as show:
    found = search(job, limit, show, fixed)
  if as_json:
    counts = dataclasses.asdict(dataclasses.replace(found, fitting=()))
    table = [report.json_of(outcome) for outcome in found.fitting]
    print(json.dumps(counts | {"fitting": table}))
  else:
    print(report.search_text(found))
  return bool(found.fitting)


def parse_mesh(text: str) -> MeshConfig:
  """Reads "data=1,fsdp=4,context=1,tensor=1"; what is left out is 1.

  Raises:
    ValueError: naming the part that is not an axis and a number.
  """
  axes = ("data", "fsdp", "context", "tensor")
  degrees, given = dict.fromkeys(axes, 1), set()
  for part in text.split(","):
    axis, _, number = part.strip().partition("=")
    try:
      degree = int(number)
    except ValueError:
      degree = 0
    if axis not in axes or degree == 0 or axis in given:
      raise ValueError(
        f"mesh {text!r}: {part!r} is none of data=N, fsdp=N, context=N, "
        "tensor=N, each once; e.g. --mesh=data=1,fsdp=4,context=1,tensor=1"
      )
    given.add(axis)
    degrees[axis] = degree
  return MeshConfig(**degrees)


def job_of_flags() -> Job:
  """What the command line asks for."""
  args = flags.FLAGS
  return make_job(
    run_config.parse(args.config),
    topology.find(args.topology),
    tokens=args.tokens,
    mesh=parse_mesh(args.mesh) if args.mesh else None,
    remat=args.remat,
    rows=args.rows,
    words=args.words,
    sample=args.sample,
  )


def main(_) -> None:
  args = flags.FLAGS
  with ends_with_code():
    job = job_of_flags()
    if args.search:
      asked = {"mesh": args.mesh, "remat": args.remat, "rows": args.rows}
      fixed = {name for name, value in asked.items() if value is not None}
      fits = look_around(job, args.compiles, fixed, args.json)
    else:
      fits = plan(job, args.remedies, args.json)
  sys.exit(FITS if fits else TOO_LARGE)


@contextlib.contextmanager
def ends_with_code() -> Iterator[None]:
  """Says what is wrong, with a code that is not the one of "does not fit"."""
  try:
    yield
  except entry_point.EXPECTED as error:
    with contextlib.suppress(SystemExit):
      entry_point.fail(error)
    sys.exit(BAD_INPUT)
  except jax.errors.JaxRuntimeError:
    traceback.print_exc()
    sys.exit(COMPILER)
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # XLA may be compiling: taking it down crashes.


@contextlib.contextmanager
def _progress(
  what: str, total: int, quiet: bool
) -> Iterator[Callable[[int, str], None]]:
  """A bar of compilations, or nothing."""
  if quiet:
    yield lambda *_: None
    return
  print()
  with Progress(what, total, unit="programs") as bar:
    yield bar.show


def parse(argv: list[str]) -> list[str]:
  try:
    return entry_point.parse(argv)
  except SystemExit:
    asked = {"--help", "-h", "--helpshort", "--helpfull"} & {*argv}
    sys.exit(0 if asked else BAD_INPUT)


def run() -> None:
  """Defines the flags and runs the command."""
  config_flag.define("configs/text_to_image.py:flag_5b")
  flags.DEFINE_string("topology", None, "Machine, e.g. v5p:2x2x1 or cpu:8.")
  flags.DEFINE_integer(
    "tokens",
    None,
    "Of a row, one sample each; left out: the config's batch.",
    lower_bound=1,
    upper_bound=2**26,
  )
  flags.DEFINE_string(
    "mesh", None, "E.g. data=1,fsdp=4,context=1,tensor=1; left out: by rule."
  )
  flags.DEFINE_string("remat", None, "A policy; left out: the config's.")
  flags.DEFINE_integer(
    "rows", None, "Of each data x fsdp shard; left out: 1, or the config's."
  )
  flags.DEFINE_integer("words", None, "Of a row, a multiple of 128.")
  flags.DEFINE_bool("sample", False, "The sampler instead of a step.")
  flags.DEFINE_bool(
    "search", False, "Try meshes x remat x rows, but for what is given."
  )
  flags.DEFINE_integer(
    "compiles", 12, "Of --search at the most.", lower_bound=1
  )
  flags.DEFINE_bool(
    "remedies", True, "If it does not fit, compile changes until three do."
  )
  flags.DEFINE_bool("json", False, "One JSON object instead of text.")
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  run()
