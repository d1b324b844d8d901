"""The flow-matching loss on held-out data, by time."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from data_pipelines.batches import Batches
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import RULES, divisors
from lumina_jax.sampling.components import Components
from lumina_jax.training.gradient import TIME_BINS, flow_loss


def loss_by_time(
  components: Components, batches: Batches, count: int
) -> list[float]:
  """Mean loss over the samples of each of ten equal bins of t.

  All devices of all processes share the rows of a batch.

  Args:
    components: the network, its parameters and devices.
    batches: batches of data that the network was not trained on.
    count: number of batches.
  """
  network, times = components.network, TimeDistribution("uniform")

  @jax.jit
  def losses(params, batch, seed):
    with nn.logical_axis_rules(RULES):
      return flow_loss(network, params, batch, times, jax.random.key(seed))

  total, samples = np.zeros(TIME_BINS), np.zeros(TIME_BINS)
  for i in range(count):
    with components.devices():
      batch = _pad_rows(batches.batch(i), divisors()[0])
      flow = losses(components.params, batch, i)
      loss, by_bin = processes.gather(flow.by_time)
    total, samples = total + loss, samples + by_bin
  return [float(x) for x in total / np.maximum(samples, 1)]


def _pad_rows(batch: Any, divisor: int) -> Any:
  """Adds empty rows, so that the devices can share the rows."""
  return jax.tree.map(
    lambda x: np.pad(x, [(0, -len(x) % divisor), *[(0, 0)] * (x.ndim - 1)]),
    batch,
  )
