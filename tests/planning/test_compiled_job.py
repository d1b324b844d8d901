"""Real programs on this CPU: memory, rematerialisation, suggestions."""

import dataclasses

import jax
import pytest
from support.configs import small_config

from lumina_jax.parallel.chips import CHIPS, TERA
from lumina_jax.parallel.topology import Topology
from lumina_jax.planning import report
from lumina_jax.planning import suggestions as suggestions_module
from lumina_jax.planning.compiled_job import compile_job
from lumina_jax.planning.job import make_job
from lumina_jax.planning.memory import minimum_bytes, saved_bytes
from lumina_jax.planning.roofline import roofline
from lumina_jax.planning.suggestions import suggestions

pytestmark = pytest.mark.long


def job_of(usable: int = 0):
  """Four rows without remat, on this CPU as a chip with this much memory."""
  chip = dataclasses.replace(
    CHIPS["cpu"], flops=TERA, bandwidth=1e11, ici=1e10, usable=usable
  )
  machine = Topology("tiny", chip, tuple(jax.devices()[:1]))
  config = small_config()
  return make_job(config, machine, tokens=256, remat="none", rows=4)


@pytest.fixture(scope="module")
def compiled():
  """Without remat, and with."""
  job = job_of()
  return compile_job(job), compile_job(job.replace(remat="full"))


def test_memory_is_accounted_for(compiled):
  for result in compiled:
    sizes = result.arguments
    assert sizes.parameters == sizes.ema
    assert 2 * sizes.parameters <= sizes.optimizer < 2.1 * sizes.parameters
    used = sizes.state + sizes.inputs
    assert result.result.arguments == pytest.approx(used, rel=0.01)
    assert used < result.peak
    assert minimum_bytes(result.job) <= result.peak


def test_remat_saves_memory_and_costs_arithmetic(compiled):
  plain, full = compiled
  assert full.peak < plain.peak
  assert saved_bytes(full.job) < saved_bytes(plain.job)
  a, b = roofline(plain), roofline(full)
  assert a.useful == b.useful < a.arithmetic  # Scores are recomputed.
  again = b.arithmetic - a.arithmetic
  assert again == pytest.approx(b.useful / 3)  # One forward pass.
  assert b.mfu <= 0.75


def test_suggestions_fit_and_the_cheapest_comes_first(compiled, monkeypatch):
  monkeypatch.setattr(suggestions_module, "MAX_SUGGESTIONS", 1)
  plain, _ = compiled
  refused = dataclasses.replace(plain, job=job_of(plain.peak - 1))
  assert not refused.fits
  assert "DOES NOT FIT" in report.verdict(refused)
  (found,) = suggestions(refused)
  assert found.compiled.fits
  assert found.flags.startswith("--remat=")
