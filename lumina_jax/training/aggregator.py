"""Metrics of many steps as one line: means, rates, shares of time."""

from __future__ import annotations

import resource
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.batches import LoadedBatch
from lumina_jax.backbone import ModelConfig, flops
from lumina_jax.parallel import chips
from lumina_jax.training.goodput import Ledger
from lumina_jax.training.gradient import TIME_BINS
from lumina_jax.training.metrics import Metrics
from lumina_jax.training.nan_guard import Skips

GIB = 2**30
# What is no mean over steps.
APART = ("loss_by_time", "samples_by_time", "tokens", "finite")


class Work(NamedTuple):
  """What a step computes, and what its devices could.

  Attributes:
    flops: of forward and backward, all matrix products and all of attention,
      nothing that is computed twice.
    peak: floating-point operations a second of all devices; 0 = unknown.
  """

  flops: float
  peak: float

  @classmethod
  def of(
    cls,
    model: ModelConfig,
    rows: int,
    budget: tuple[int, int, int],
    mesh: Mesh,
  ) -> Work:
    """Of a step of so many rows; `budget` is (tokens, words, samples)."""
    chip = chips.chip_of(mesh.devices.flat[0])
    peak = chip.device_flops * mesh.size if chip else 0.0
    return cls(flops.count(model, rows, *budget).train, peak)


class Window:
  """Gathers metrics over a window of steps, fetched one step late.

  To wait for the values of the step just dispatched would leave the device
  idle; those of the step before are there.

  Attributes:
    ledger: of the run's time.
    shown: step and values last fetched, for a bar.
  """

  def __init__(
    self,
    metrics: Metrics,
    size: int,
    ledger: Ledger,
    skips: Skips,
    faults: BadRecordCounter,
    work: Work,
  ):
    """Opens a window.

    Args:
      metrics: where lines go.
      size: steps of a line.
      ledger: of the run's time.
      skips: is shown every step.
      faults: of the data, to be told in the line.
      work: of a step.
    """
    self._metrics, self._size, self.ledger = metrics, size, ledger
    self._skips, self._faults, self._work = skips, faults, work
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._values: list[dict[str, Any]] = []
    self._steps = 0  # Since the start.
    self._began = self._waited = 0.0  # Seconds by the ledger.
    self._timed = 0  # Steps since then.
    self.shown: tuple[int, str] = 0, ""

  def add(
    self, step: int, values: dict[str, jax.Array], loaded: LoadedBatch
  ) -> None:
    """Takes the values of `step`, and fetches those of the step before.

    Args:
      step: number, from 1.
      values: metrics of the step, on devices.
      loaded: its batch, whose broken records are counted.

    Raises:
      FloatingPointError: if too many steps in a row were not finite.
      OSError: if too many records were broken.
    """
    self._faults.add(loaded.bad_records, loaded.records)
    self.finish()
    self._pending = step, values

  def finish(self) -> None:
    """Fetches what is pending; a full window goes to disk."""
    if self._pending is None:
      return
    step, values = self._pending
    self._pending = None
    values = jax.tree.map(np.asarray, values)
    if self.ledger.started():  # It has compiled: its time tells nothing.
      self._mark()
    else:
      self._timed += 1
    self.shown = step, f"loss {values['loss']:.3f}"
    self._values.append(values)
    self._steps += 1
    try:
      self._skips.add(step, values)
    except FloatingPointError:
      self.write()  # The last lines tell most.
      raise
    if step % self._size == 0:
      self.write()

  def write(self) -> None:
    """Writes the steps fetched since the last line, if any."""
    if not self._values:
      return
    line = summary(self._values)
    line["skipped"] = self._skips.count
    line["bad_records"] = self._faults.count
    line |= self._rates() | {"goodput": self.goodput} | _memory()
    self._metrics.write(self.shown[0], line)
    self._values, self._timed = [], 0
    self._mark()

  def flush(self) -> None:
    """Makes the lines so far last."""
    self._metrics.flush()

  @property
  def skipped(self) -> int:
    """Updates since the start that were not finite."""
    return self._skips.count - self._skips.before

  @property
  def bad_records(self) -> int:
    """Broken records since the start."""
    return self._faults.count

  @property
  def goodput(self) -> float:
    """Share of all time since the start that went into steps that count."""
    useful = 1 - self.skipped / max(self._steps, 1)
    return useful * self.ledger.training / self.ledger.total

  def _mark(self) -> None:
    self._began = self.ledger.stepping
    self._waited = self.ledger.spent["data"]

  def _rates(self) -> dict[str, float]:
    """Of steps alone, without pictures and checkpoints between them."""
    if not self._timed:
      return {}
    seconds = max(self.ledger.stepping - self._began, 1e-9)
    timed = self._values[-self._timed :]
    speed = self._timed / seconds
    rates = {
      "steps_per_second": speed,
      "examples_per_second": speed * _mean(timed, "samples"),
      "tokens_per_second": speed * _mean(timed, "tokens"),
      "data_wait": (self.ledger.spent["data"] - self._waited) / seconds,
    }
    if self._work.peak:
      rates["mfu"] = speed * self._work.flops / self._work.peak
    return rates


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
  """Metrics of several steps as one: means over those that counted.

  A loss by time bin is that of all samples of the bin, None if there are none.
  """
  kept = [values for values in steps if values["finite"]]
  names = sorted(steps[0].keys() - set(APART), key=lambda n: (n != "loss", n))
  line = {name: _mean(kept, name) if kept else None for name in names}
  total, count = (
    sum((values[name] for values in kept), np.zeros(TIME_BINS))
    for name in ("loss_by_time", "samples_by_time")
  )
  line["loss_by_time"] = [
    float(a / b) if b else None for a, b in zip(total, count, strict=True)
  ]
  return line


def _mean(steps: list[dict[str, Any]], name: str) -> float:
  return float(np.mean([float(values[name]) for values in steps]))


def _memory() -> dict[str, float]:
  """GiB that this process held at the most, and its first device."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  found = {"host_memory": peak / GIB}
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    found["device_memory"] = stats["peak_bytes_in_use"] / GIB
  return found
