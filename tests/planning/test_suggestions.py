"""Suggestions, searches and reports, with estimates in place of a compiler."""

import dataclasses
import json

import jax
import pytest
from support.configs import small_config

from lumina_jax.backbone.remat import POLICIES
from lumina_jax.parallel.chips import CHIPS, TERA
from lumina_jax.parallel.compiled import OutOfMemory, Program
from lumina_jax.parallel.hlo import Traffic
from lumina_jax.parallel.topology import Topology
from lumina_jax.planning import report, run
from lumina_jax.planning import search as search_module
from lumina_jax.planning import suggestions as suggestions_module
from lumina_jax.planning.compiled_job import Arguments, CompiledJob
from lumina_jax.planning.job import make_job
from lumina_jax.planning.memory import expected_bytes, state_bytes
from lumina_jax.planning.search import (
  estimated_seconds,
  mesh_shapes,
  search,
  variants,
)
from lumina_jax.planning.suggestions import candidates, suggestions

TOKENS = 8192
MODULES = run, search_module, suggestions_module


def job_of(usable: int = 0, devices: int = 4, **options):
  """A job on fake chips with this much memory."""
  chip = dataclasses.replace(
    CHIPS["cpu"], flops=TERA, bandwidth=1e11, ici=1e10, usable=usable
  )
  machine = Topology("tiny", chip, tuple(jax.devices()[:1] * devices))
  return make_job(small_config(), machine, tokens=TOKENS, **options)


def compile_as_estimated(job):
  """A program that takes what `expected_bytes` says."""
  state = state_bytes(job)
  arguments = Arguments(state // 4, state // 4, state // 2, 1000)
  peak, usable = expected_bytes(job), job.topology.chip.usable
  if usable and peak > usable:
    return CompiledJob(job, arguments, OutOfMemory(peak, usable))
  traffic = {"all-gather": Traffic(3, 5.4912e9)}
  return CompiledJob(job, arguments, Program(peak, state, 0, traffic, 2))


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
  """Flags of the jobs that were compiled."""
  flags = []

  def compile_job(job):
    flags.append(search_module.format_flags(job))
    return compile_as_estimated(job)

  for module in MODULES:
    monkeypatch.setattr(module, "compile_job", compile_job)
  return flags


def refused():
  """A job without remat on chips that miss one byte for it."""
  job = job_of(remat="none", rows=4)
  result = compile_as_estimated(job_of(expected_bytes(job) - 1, remat="none",
                                       rows=4))  # fmt: skip
  assert not result.fits
  return result


def test_candidates_change_one_thing_at_a_time():
  job = job_of(remat="none")
  job = job.replace(rows_per_shard=4, mesh_shape=(1, 4, 1, 1))
  flags = [flags for flags, _, _ in candidates(job)]
  assert flags[:4] == [
    "--remat=attention",
    "--remat=full",
    "--rows=2",
    "--rows=1",
  ]
  assert [f.partition("=")[0] for f in flags[4:]] == [
    "--mesh",
    "--mesh",
    "--remat",
  ]
  assert flags[-1] == "--remat=offload_hidden"


def test_suggestions_are_the_first_candidates_that_fit(compiled):
  shown = []
  found = [*suggestions(refused(), lambda n, flags: shown.append((n, flags)))]
  assert [s.flags for s in found] == [
    "--remat=attention",
    "--remat=full",
    "--rows=2",
  ]
  assert all(s.compiled.fits for s in found)
  assert shown == [(n, s.flags) for n, s in enumerate(found)]
  assert len(compiled) == 3


def test_without_memory_nothing_fits_and_nothing_is_compiled(compiled):
  job = job_of(usable=1000)
  assert [*suggestions(compile_as_estimated(job))] == []
  found = search(job, limit=3)
  assert (found.compiled, found.fitting) == (0, ())
  assert found.too_large == found.considered > 0
  assert not compiled


def test_a_search_compiles_one_fitting_job_per_mesh(compiled):
  job = job_of(10**12)
  shown = []
  found = search(job, 2, lambda n, flags: shown.append((n, flags)))
  assert found.compiled == len(found.fitting) == 2
  a, b = found.fitting
  assert a.job.mesh_shape != b.job.mesh_shape
  seconds = search_module.seconds_per_token
  assert seconds(a) <= seconds(b)
  assert shown == [(0, compiled[0]), (1, compiled[1]), (2, "")]


def test_a_search_skips_jobs_of_a_mesh_that_need_more(monkeypatch):
  def refuse(job):
    compiled.append(job)
    return dataclasses.replace(
      compile_as_estimated(job), result=OutOfMemory(10**12, 10**11)
    )

  compiled = []
  monkeypatch.setattr(search_module, "compile_job", refuse)
  assert not search(job_of(10**12), 20, fixed={"mesh"}).fitting
  sizes = [expected_bytes(job) for job in compiled]
  assert len(sizes) > 1 and sizes == sorted(sizes, reverse=True)


def test_every_mesh_of_a_search_has_all_devices():
  found = [*mesh_shapes(job_of(devices=8))]
  assert len(found) == len(set(found)) > 10
  for data, fsdp, context, tensor in found:
    assert data * fsdp * context * tensor == 8
    assert tensor <= 2  # heads


def test_offloading_costs_more_than_keeping():
  """Otherwise a search would offload wherever it can."""
  job = job_of(devices=8)

  def cost(remat):
    return estimated_seconds(job.replace(remat=remat))

  for offloading, local in search_module.ON_DEVICE.items():
    assert cost(offloading) > cost(local)
  assert cost("none") < cost("full")


def test_a_search_keeps_fixed_options():
  job = job_of(devices=8, rows=2)
  fixed = [*variants(job, {"mesh", "remat", "rows"})]
  assert [(j.mesh_shape, j.model.remat, j.rows_per_shard) for j in fixed] == [
    (job.mesh_shape, job.model.remat, 2)
  ]
  assert {j.model.remat for j in variants(job, {"mesh"})} == {*POLICIES}


def test_a_failed_compilation_ends_neither_search_nor_suggestions(monkeypatch):
  def fail(job):
    raise jax.errors.JaxRuntimeError("INTERNAL: no luck\nat all")

  for module in MODULES:
    monkeypatch.setattr(module, "compile_job", fail)
  found = search(job_of(), limit=2)
  assert (found.compiled, found.fitting) == (2, ())
  assert "failed to compile: --mesh=" in report.search_text(found)
  assert "INTERNAL: no luck" in report.search_text(found)
  assert [*suggestions(refused())] == []


def test_a_job_that_does_not_fit_prints_suggestions(capsys):
  assert not run.plan(refused().job, suggest=True, as_json=False)
  text = capsys.readouterr().out
  assert "requested, at least" in text and "DOES NOT FIT" in text
  assert text.count("fits:\n  --") == 3
  run.plan(refused().job, suggest=True, as_json=True)
  found = json.loads(capsys.readouterr().out)
  assert not found["fits"] and found["roofline"] is None
  assert [s["fits"] for s in found["suggestions"]] == [True] * 3
  assert found["suggestions"][0]["flags"] == "--remat=attention"


def test_a_job_that_fits_prints_its_resources(capsys):
  assert run.plan(job_of(), suggest=True, as_json=False)
  text = capsys.readouterr().out
  for line in (
    "a training step on tiny, 4 devices",
    "all-gather   3   5.491 GB",
    "2 Pallas kernels in the program",
    "FITS: these devices have no memory limit",
  ):
    assert line in text
  assert "MFU, limited by" in text
  run.plan(job_of(), suggest=True, as_json=True)
  found = json.loads(capsys.readouterr().out)
  assert found["fits"] and found["suggestions"] == []
  assert found["roofline"]["bottleneck"] in ("arithmetic", "HBM", "ICI")
  assert found["memory"]["peak"] == expected_bytes(job_of())


def test_a_search_prints_a_table(capsys):
  assert run.search_meshes(job_of(10**12), 2, (), as_json=False)
  *_, header, first, second, note = capsys.readouterr().out.splitlines()
  assert header.split()[:3] == ["peak", "GiB", "batch"]
  assert "--mesh=data=" in first and "--mesh=data=" in second
  assert note.startswith("Sorted by")
  run.search_meshes(job_of(10**12), 2, (), as_json=True)
  found = json.loads(capsys.readouterr().out)
  assert len(found["fitting"]) == found["compiled"] == 2
