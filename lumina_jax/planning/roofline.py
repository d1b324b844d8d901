"""Lower bounds of the time of a step, by the roofline model.

Roofline (Williams et al. 2009): arithmetic, HBM and links each take some time,
and at best all three overlap. So the longest is a lower bound. Real steps are
slower: matrix products reach 80 to 90 % of a chip's peak, and overlap is
partial.
"""

import dataclasses

from lumina_jax.parallel.compiled import Program
from lumina_jax.planning.compiled_job import CompiledJob
from lumina_jax.planning.job import Job, count_parameters
from lumina_jax.planning.memory import itemsize, saved_bytes


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a training step, or of a call of the sampler.

  Attributes:
    useful: matrix products of the network at the chip's peak.
    arithmetic: the same with recomputation in the backward pass.
    hbm: bytes that must pass through HBM.
    ici: bytes that a device sends, over all of its links together.
  """

  useful: float
  arithmetic: float
  hbm: float
  ici: float

  @property
  def times(self) -> dict[str, float]:
    """Seconds of each resource, by name."""
    return {"arithmetic": self.arithmetic, "HBM": self.hbm, "ICI": self.ici}

  @property
  def bottleneck(self) -> str:
    """The name of the longest time."""
    return max(self.times, key=self.times.__getitem__)

  @property
  def seconds(self) -> float:
    """The lower bound: the longest time."""
    return max(self.times.values())

  @property
  def mfu(self) -> float:
    """An upper bound of model FLOPs utilisation."""
    return self.useful / self.seconds


def roofline(compiled: CompiledJob) -> Roofline | None:
  """The bounds of a compiled job; None if it failed or has no known peak."""
  if not isinstance(compiled.result, Program):
    return None
  arguments = compiled.arguments
  state = 2 * arguments.state + arguments.parameters
  return estimate(compiled.job, compiled.result.sent, state)


def estimate(job: Job, sent: float, state: int) -> Roofline | None:
  """The bounds of a job; None if its chip has no known peak.

  Bytes through HBM of a device: weights in each pass (forward, backward, and
  the recomputed forward); saved activations, written and read; the state, read
  and written, and gradients. Activations within a block count as if they stayed
  on the chip.

  Args:
    job: the job.
    sent: bytes that a device sends.
    state: bytes that the optimizer reads and writes.
  """
  chip = job.topology.chip
  if not chip.flops:
    return None
  if job.sample:
    passes, recomputed = job.forward_passes, 0
    useful = job.flops.sample(passes)
  else:
    passes = 2 + (job.model.remat != "none")
    recomputed, useful = job.flops.recomputed(job.model.remat), job.flops.train
  peak = job.devices * chip.flops
  weights = itemsize(job) * count_parameters(job.config)
  moved = passes * weights / job.axis_sizes["tensor"]
  if not job.sample:
    moved += state + 2 * saved_bytes(job)
  return Roofline(
    useful=useful / peak,
    arithmetic=(useful + recomputed) / peak,
    hbm=moved / chip.bandwidth,
    ici=sent / chip.ici,
  )
