"""Memory and speed of a run on a machine you need not have.

Compiles the real training step (with --sample, a call of the sampler) and
prints memory, collectives, FLOPs and a lower bound of the time of a step. If it
does not fit, prints changes that do.

  python -m lumina_jax.plan --config=configs/text_to_image.py:flag_5b \\
    --topology=v5e:4x4 --tokens=4096
  python -m lumina_jax.plan ... --search     which mesh, remat and rows fit

Topologies: v5e:4x4, v5p:2x2x1, v6e:2x4, v7x:2x2x1, on any Linux machine with
libtpu (pip install -r requirements-tpu.txt); cpu:8; gpu, those of this machine.
Exit codes: 0 fits, 1 does not fit, 2 bad input, 3 compiler error.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax
from absl import app, flags

from lumina_jax.commands import config_flag
from lumina_jax.commands import start as entry_point
from lumina_jax.parallel import topology
from lumina_jax.parallel.mesh import parse_mesh
from lumina_jax.planning.job import Job, make_job
from lumina_jax.planning.run import plan, search_meshes
from lumina_jax.training import run_config

FITS, TOO_LARGE, BAD_INPUT, COMPILER_ERROR, INTERRUPTED = 0, 1, 2, 3, 130


def main(_) -> None:
  args = flags.FLAGS
  with exit_codes():
    job = job_from_flags()
    if args.search:
      fixed = {
        name
        for name in ("mesh", "remat", "rows")
        if getattr(args, name) is not None
      }
      fits = search_meshes(job, args.compiles, fixed, args.json)
    else:
      fits = plan(job, args.suggest, args.json)
  sys.exit(FITS if fits else TOO_LARGE)


def job_from_flags() -> Job:
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


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
  """Ends with a code that tells errors from a job that does not fit."""
  try:
    yield
  except entry_point.EXPECTED as error:
    with contextlib.suppress(SystemExit):
      entry_point.fail(error)
    sys.exit(BAD_INPUT)
  except jax.errors.JaxRuntimeError:
    traceback.print_exc()
    sys.exit(COMPILER_ERROR)
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # A normal exit crashes while XLA compiles.


def parse_flags(argv: list[str]) -> list[str]:
  try:
    return entry_point.parse(argv)
  except SystemExit:
    help_flags = {"--help", "-h", "--helpshort", "--helpfull"}
    sys.exit(0 if help_flags & {*argv} else BAD_INPUT)


def define_flags() -> None:
  config_flag.define("configs/text_to_image.py:flag_5b")
  flags.DEFINE_string("topology", None, "Machine, e.g. v5p:2x2x1 or cpu:8.")
  flags.DEFINE_integer(
    "tokens",
    None,
    "Tokens per row, one sample each; default: the config's batch.",
    lower_bound=1,
    upper_bound=2**26,
  )
  flags.DEFINE_string(
    "mesh",
    None,
    "E.g. data=1,fsdp=4,context=1,tensor=1; default: chosen by --tokens.",
  )
  flags.DEFINE_string("remat", None, "Remat policy; default: the config's.")
  flags.DEFINE_integer(
    "rows", None, "Rows per data x fsdp shard; default: 1, or the config's."
  )
  flags.DEFINE_integer("words", None, "Words per row, a multiple of 128.")
  flags.DEFINE_bool("sample", False, "Compile the sampler, not a step.")
  flags.DEFINE_bool(
    "search", False, "Try meshes, remat and rows, except those that are set."
  )
  flags.DEFINE_integer(
    "compiles", 12, "Most compilations of --search.", lower_bound=1
  )
  flags.DEFINE_bool(
    "suggest", True, "If it does not fit, compile changes until three fit."
  )
  flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")
  flags.mark_flags_as_required(["config", "topology"])


def run() -> None:
  """Runs the command."""
  define_flags()
  app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
  run()
