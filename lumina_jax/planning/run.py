"""Runs `lumina_jax.plan`: compiles a job or searches meshes, and prints."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator

from lumina_jax.files.progress import Progress
from lumina_jax.planning import report
from lumina_jax.planning.compiled_job import compile_job
from lumina_jax.planning.job import Job
from lumina_jax.planning.search import search
from lumina_jax.planning.suggestions import MAX_COMPILATIONS, suggestions


def plan(job: Job, suggest: bool, as_json: bool) -> bool:
  """Compiles a job and prints its memory and speed; returns whether it fits.

  Args:
    job: the job.
    suggest: whether to compile changes if it does not fit.
    as_json: prints one JSON object instead of text.
  """
  show = (lambda _: None) if as_json else functools.partial(print, flush=True)
  show(f"{report.heading(job)}\n\ncompiling ...")
  compiled = compile_job(job)
  show(f"\n{report.text(compiled)}")
  found = []
  if suggest and not compiled.fits:
    with _progress("suggestions", MAX_COMPILATIONS, as_json) as advance:
      for suggestion in suggestions(compiled, advance):
        found.append(suggestion)
        show(f"fits:\n{report.suggestion_text(suggestion)}")
    if not found:
      show("No change that was compiled fits; see --search")
  if as_json:
    others = [
      {"flags": s.flags, "cost": s.cost} | report.to_json(s.compiled)
      for s in found
    ]
    print(json.dumps(report.to_json(compiled) | {"suggestions": others}))
  return compiled.fits


def search_meshes(
  job: Job, limit: int, fixed: Collection[str], as_json: bool
) -> bool:
  """Prints which meshes, policies and rows fit; returns whether any does.

  Args:
    job: the job to vary.
    limit: most compilations.
    fixed: see `search.search`.
    as_json: prints one JSON object instead of text.
  """
  with _progress("searching", limit, as_json) as advance:
    found = search(job, limit, advance, fixed)
  if as_json:
    counts = dataclasses.asdict(dataclasses.replace(found, fitting=()))
    table = [report.to_json(compiled) for compiled in found.fitting]
    print(json.dumps(counts | {"fitting": table}))
  else:
    print(report.search_text(found))
  return bool(found.fitting)


@contextlib.contextmanager
def _progress(
  title: str, total: int, quiet: bool
) -> Iterator[Callable[[int, str], None]]:
  """A progress bar of compilations, or nothing."""
  if quiet:
    yield lambda *_: None
    return
  print()
  with Progress(title, total, unit="programs") as bar:
    yield bar.show
