"""Aggregates the metrics of several steps: means, rates, goodput."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.batches import Batches, LoadedBatch
from lumina_jax.backbone import flops
from lumina_jax.parallel import chips, processes
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.goodput import GoodputTracker
from lumina_jax.training.gradient import TIME_BINS
from lumina_jax.training.metrics import MetricsWriter
from lumina_jax.training.nan_guard import NanGuard
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState

GIB = 2**30
# Metrics of a step that are not averaged over steps.
NOT_AVERAGED = ("loss_by_time", "samples_by_time", "tokens", "finite")


def seconds_at_peak(config: RunConfig, mesh: Mesh) -> float:
  """Seconds of a training step at the peak of all devices; 0 = unknown.

  Counts forward and backward pass: all matrix products and all of attention,
  without recomputation.
  """
  chip = chips.chip_of(mesh.devices.flat[0])
  count = flops.count(
    config.model, config.training.batch_rows, *config.data.budget
  )
  return count.train / (chip.flops * mesh.size) if chip else 0.0


class MetricsAggregator:
  """Collects the metrics of steps and writes a row every `log_every` steps.

  Metrics are fetched one step late: waiting for those of the step just
  dispatched would leave the device idle.

  Attributes:
    goodput: tracks the run's time.
    latest: step and loss last fetched, for a progress bar.
  """

  def __init__(
    self,
    writer: MetricsWriter,
    log_every: int,
    goodput: GoodputTracker,
    nan_guard: NanGuard,
    bad_records: BadRecordCounter,
    at_peak: float,
  ):
    """Starts with no steps.

    Args:
      writer: writes the rows.
      log_every: steps per row.
      goodput: tracks the run's time.
      nan_guard: checks every step.
      bad_records: counts bad records of the data.
      at_peak: seconds of a step at the peak of the devices, for the MFU; 0 =
        unknown.
    """
    self._writer, self._log_every, self.goodput = writer, log_every, goodput
    self._nan_guard, self._bad_records = nan_guard, bad_records
    self._at_peak = at_peak
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._steps: list[dict[str, Any]] = []  # Metrics of the next row.
    self._count = 0  # Steps since the start.
    self._timed = 0  # Steps since `_mark_time`.
    self._step_seconds = self._data_seconds = 0.0  # At `_mark_time`.
    self.latest: tuple[int, str] = 0, ""

  def add(
    self, step: int, metrics: dict[str, jax.Array], loaded: LoadedBatch
  ) -> None:
    """Adds the metrics of `step`, and fetches those of the step before.

    Args:
      step: number of the step, from 1.
      metrics: metrics on the devices.
      loaded: batch of the step, with its bad records.

    Raises:
      FloatingPointError: if too many updates in a row were not finite.
      OSError: if too many records were bad.
    """
    self._bad_records.add(loaded.bad_records, loaded.records)
    self.fetch()
    self._pending = step, metrics

  def fetch(self) -> None:
    """Fetches the pending metrics, and writes a row if it is complete."""
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    metrics = jax.tree.map(np.asarray, metrics)
    if self.goodput.start_training():  # This step was compiled: do not time it.
      self._mark_time()
    else:
      self._timed += 1
    self.latest = step, f"loss {metrics['loss']:.3f}"
    self._steps.append(metrics)
    self._count += 1
    try:
      self._nan_guard.check(step, metrics)
    except FloatingPointError:
      self.write()  # The last rows matter most.
      raise
    if step % self._log_every == 0:
      self.write()

  def write(self) -> None:
    """Writes the steps fetched since the last row, if any."""
    if not self._steps:
      return
    row = average(self._steps)
    row["skipped"] = self._nan_guard.skipped
    row["bad_records"] = self._bad_records.count
    row |= self._rates() | {"goodput": self.goodput_share} | _memory()
    self._writer.write(self.latest[0], row)
    self._steps, self._timed = [], 0
    self._mark_time()

  def flush(self) -> None:
    """Makes the rows so far survive a power cut."""
    self._writer.flush()

  @property
  def skipped(self) -> int:
    """Number of skipped updates since the start."""
    return self._nan_guard.skipped - self._nan_guard.skipped_before

  @property
  def bad_records(self) -> int:
    """Number of bad records since the start."""
    return self._bad_records.count

  @property
  def goodput_share(self) -> float:
    """Share of the time since the start that went into successful steps."""
    successful = 1 - self.skipped / max(self._count, 1)
    return successful * self.goodput.training / self.goodput.total

  def _mark_time(self) -> None:
    self._step_seconds = self.goodput.stepping
    self._data_seconds = self.goodput.badput["data"]

  def _rates(self) -> dict[str, float]:
    """Rates of the steps alone, without samples and checkpoints."""
    if not self._timed:
      return {}
    seconds = max(self.goodput.stepping - self._step_seconds, 1e-9)
    timed = self._steps[-self._timed :]
    speed = self._timed / seconds
    data_seconds = self.goodput.badput["data"] - self._data_seconds
    rates = {
      "steps_per_second": speed,
      "examples_per_second": speed * _mean(timed, "samples"),
      "tokens_per_second": speed * _mean(timed, "tokens"),
      "data_wait": data_seconds / seconds,
    }
    if self._at_peak:
      rates["mfu"] = speed * self._at_peak
    return rates


def make_aggregator(
  config: RunConfig,
  mesh: Mesh,
  writer: MetricsWriter,
  goodput: GoodputTracker,
  batches: Batches,
  checkpoints: Checkpoints,
  state: TrainState,
) -> MetricsAggregator:
  """The aggregator of a run that starts from `state`."""
  plan, skipped = config.training, int(state.skipped)
  return MetricsAggregator(
    writer,
    plan.log_every,
    goodput,
    NanGuard(plan.max_skipped, batches.names, checkpoints.latest_step, skipped),
    BadRecordCounter(config.data.bad_limit),
    seconds_at_peak(config, mesh),
  )


def average(steps: list[dict[str, Any]]) -> dict[str, Any]:
  """Averages the metrics of several steps; skipped steps are left out.

  The loss of a time bin is the mean over all samples in it; None without any.
  """
  kept = [metrics for metrics in steps if metrics["finite"]]
  names = steps[0].keys() - set(NOT_AVERAGED)
  names = sorted(names, key=lambda name: (name != "loss", name))
  row = {name: _mean(kept, name) if kept else None for name in names}
  total, count = (
    sum((metrics[name] for metrics in kept), np.zeros(TIME_BINS))
    for name in ("loss_by_time", "samples_by_time")
  )
  row["loss_by_time"] = [
    float(a / b) if b else None for a, b in zip(total, count, strict=True)
  ]
  return row


def _mean(steps: list[dict[str, Any]], name: str) -> float:
  return float(np.mean([float(metrics[name]) for metrics in steps]))


def _memory() -> dict[str, float]:
  """Peak memory of this process and of its first device, in GiB."""
  memory = {"host_memory": processes.peak_memory() / GIB}
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    memory["device_memory"] = stats["peak_bytes_in_use"] / GIB
  return memory
