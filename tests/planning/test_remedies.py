"""A job too large, on a device made so: what is offered fits, as compiled."""

import dataclasses

import jax
import pytest
from support.configs import small_config

from lumina_jax.backbone.remat import POLICIES
from lumina_jax.parallel.chips import CHIPS, TERA
from lumina_jax.parallel.topology import Topology
from lumina_jax.planning import remedies as remedies_module
from lumina_jax.planning import report
from lumina_jax.planning import search as search_module
from lumina_jax.planning.bound import bound
from lumina_jax.planning.job import make_job
from lumina_jax.planning.outcome import compile_job, saved_bytes, state_bytes
from lumina_jax.planning.remedies import candidates, remedies
from lumina_jax.planning.search import cost, meshes, search, variants

TOKENS = 256


def machine(usable: int = 0, devices: int = 1) -> Topology:
  """This CPU as a chip with so many bytes."""
  chip = dataclasses.replace(
    CHIPS["cpu"], flops=TERA, bandwidth=1e11, ici=1e10, usable=usable
  )
  return Topology("tiny", chip, tuple(jax.devices()[:1] * devices))


def job_of(usable: int = 0, **asked):
  return make_job(small_config(), machine(usable), tokens=TOKENS, **asked)


@pytest.fixture(scope="module")
def outcomes():
  """Of 4 rows without remat, and with."""
  job = job_of(remat="none", rows=4)
  return compile_job(job), compile_job(job.change(remat="full"))


@pytest.mark.slow
@pytest.mark.long
def test_memory_is_accounted_for(outcomes):
  for outcome in outcomes:
    parts = outcome.parts
    assert parts.parameters == parts.average
    assert 2 * parts.parameters <= parts.optimizer < 2.1 * parts.parameters
    used = parts.state + parts.inputs
    assert outcome.result.arguments == pytest.approx(used, rel=0.01)
    assert used < outcome.peak
    assert state_bytes(outcome.job) <= outcome.peak


@pytest.mark.slow
@pytest.mark.long
def test_remat_saves_memory_and_costs_arithmetic(outcomes):
  plain, full = outcomes
  assert full.peak < plain.peak
  assert saved_bytes(full.job) < saved_bytes(plain.job)
  a, b = bound(plain), bound(full)
  assert a.useful == b.useful < a.arithmetic  # Scores are computed again.
  again = b.arithmetic - a.arithmetic
  assert again == pytest.approx(b.useful / 3)  # One forward pass.
  assert b.mfu <= 0.75
  assert "at least" in report.text(full)


@pytest.mark.slow
@pytest.mark.long
def test_remedies_fit_and_the_cheapest_comes_first(outcomes, monkeypatch):
  monkeypatch.setattr(remedies_module, "ENOUGH", 1)
  plain, _ = outcomes
  job = job_of(plain.peak - 1, remat="none", rows=4)
  refused = dataclasses.replace(plain, job=job)
  assert not refused.fits
  assert "DOES NOT FIT" in report.verdict(refused)
  found = [*remedies(refused)]
  assert [remedy.outcome.fits for remedy in found] == [True]
  assert found[0].flags.startswith("--remat=")
  assert found[0].flags in report.remedy_text(found[0])


def test_candidates_change_one_thing_at_a_time():
  job = make_job(small_config(), machine(devices=4), tokens=8192, remat="none")
  job = job.change(rows_each=4, degrees=(1, 4, 1, 1))
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


@pytest.mark.slow
@pytest.mark.long
def test_nothing_fits_where_nothing_can(outcomes):
  refused = dataclasses.replace(outcomes[0], job=job_of(usable=1000))
  assert [*remedies(refused)] == []
  found = search(job_of(usable=1000), limit=3)
  assert (found.compiled, found.fitting) == (0, ())
  assert found.too_large == found.considered > 0


@pytest.mark.slow
@pytest.mark.long
def test_search_compiles_few_and_finds_what_fits(outcomes):
  job = job_of(4 * outcomes[0].peak, rows=1)
  shown = []
  found = search(job, 1, lambda done, note: shown.append((done, note)))
  assert found.compiled == 1
  (fitting,) = found.fitting
  assert fitting.fits
  assert shown[-1] == (found.compiled, "")
  assert f"the {found.compiled} most promising compiled" in report.search_text(
    found
  )


def test_every_mesh_of_a_search_multiplies_to_the_machine():
  job = make_job(small_config(), machine(devices=8), tokens=8192)
  found = [*meshes(job)]
  assert len(found) == len(set(found)) > 10
  for data, fsdp, context, tensor in found:
    assert data * fsdp * context * tensor == 8
    assert tensor <= 2  # heads


def test_what_is_offloaded_costs_more_than_what_stays():
  """Or a search would offload wherever it can."""
  job = make_job(small_config(), machine(devices=8), tokens=8192)
  for policy, twin in search_module.TWINS.items():
    assert cost(job.change(remat=policy)) > cost(job.change(remat=twin))
  assert cost(job.change(remat="none")) < cost(job.change(remat="full"))


def test_a_search_keeps_what_is_given():
  job = make_job(small_config(), machine(devices=8), tokens=8192, rows=2)
  fixed = [*variants(job, {"mesh", "remat", "rows"})]
  assert [(j.degrees, j.model.remat, j.rows_each) for j in fixed] == [
    (job.degrees, job.model.remat, 2)
  ]
  assert {j.model.remat for j in variants(job, {"mesh"})} == {*POLICIES}


@pytest.mark.slow
@pytest.mark.long
def test_a_failed_compilation_does_not_end_a_search(outcomes, monkeypatch):
  """Nor the remedies; what the compiler said is told."""

  def fail(job):
    raise jax.errors.JaxRuntimeError("INTERNAL: no luck\nat all")

  for module in (search_module, remedies_module):
    monkeypatch.setattr(module, "compile_job", fail)
  found = search(job_of(usable=0, rows=1), limit=2)
  assert (found.compiled, found.fitting) == (2, ())
  assert "INTERNAL: no luck" in report.search_text(found)
  refused = dataclasses.replace(outcomes[0], job=job_of(usable=10**12))
  assert [*remedies(refused)] == []


@pytest.mark.slow
@pytest.mark.long
def test_json_is_plain(outcomes):
  values = report.json_of(outcomes[1])
  assert values["fits"]
  assert values["memory"]["peak"] == outcomes[1].peak
  assert values["bound"]["binds"] in ("arithmetic", "HBM", "ICI")
