"""How fast a step can be at the best: three bounds from below, no measurement.

Roofline (Williams et al. 2009): arithmetic, HBM and links each need their time
and at the best all run side by side, so the slowest of the three is a bound.
What is real is slower: matrix products reach 80 to 90 % of a chip's peak, and
little runs wholly side by side.
"""

from __future__ import annotations

import dataclasses

from lumina_jax.parallel.compiled import Program
from lumina_jax.planning.job import Job, parameters
from lumina_jax.planning.outcome import Outcome, itemsize, saved_bytes


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds of a step, or of a call of the sampler.

  Attributes:
    useful: matrix products of the network at the chip's peak.
    arithmetic: the same and what the backward pass computes again.
    hbm: bytes that must pass through HBM.
    ici: bytes that a device sends, over all of its links together.
  """

  useful: float
  arithmetic: float
  hbm: float
  ici: float

  @property
  def times(self) -> dict[str, float]:
    return {"arithmetic": self.arithmetic, "HBM": self.hbm, "ICI": self.ici}

  @property
  def binds(self) -> str:
    """Which of them is slowest."""
    return max(self.times, key=self.times.__getitem__)

  @property
  def seconds(self) -> float:
    return max(self.times.values())

  @property
  def mfu(self) -> float:
    """Share of the peak that useful work can have."""
    return self.useful / self.seconds


def bound(outcome: Outcome) -> Bound | None:
  """The bounds of a program that compiled; None if no peak is known."""
  if not isinstance(outcome.result, Program):
    return None
  local = outcome.parts
  state = 2 * local.state + local.parameters
  return of_job(outcome.job, outcome.result.sent, state)


def of_job(job: Job, sent: float, state: int) -> Bound | None:
  """The bounds of a job.

  Bytes through HBM, of a device: weights as they are multiplied with, in each
  pass (forward, backward, forward again); what is saved, written and read; the
  state, read and written, and gradients. Activations within a block are left
  out, as if all of them stayed on the chip.

  Args:
    job: what runs.
    sent: bytes that a device sends.
    state: bytes that the optimizer reads and writes.
  """
  chip = job.topology.chip
  if not chip.flops:
    return None
  useful = job.flops.forward * job.passes if job.sample else job.flops.train
  again = 0 if job.sample else job.flops.recomputed(job.model.remat)
  peak = job.devices * chip.device_flops
  passes = job.passes if job.sample else 2 + (job.model.remat != "none")
  weights = itemsize(job) * parameters(job.config) / job.degree["tensor"]
  moved = passes * weights
  if not job.sample:
    moved += state + 2 * saved_bytes(job)
  return Bound(
    useful=useful / peak,
    arithmetic=(useful + again) / peak,
    hbm=moved / chip.device_bandwidth,
    ici=sent / chip.device_ici,
  )
