"""The training loop: steps, and what runs between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from data_pipelines.batches import Batches, LoadedBatch
from lumina_jax.files.progress import Progress
from lumina_jax.training.aggregator import MetricsAggregator
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.profile import Profiler
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState
from lumina_jax.training.step import Step, place_batch
from lumina_jax.training.watchdog import Watchdog


class TrainingLoop:
  """Trains a state up to the last step."""

  def __init__(
    self,
    config: RunConfig,
    step: Step,
    batches: Batches,
    checkpoints: Checkpoints,
    metrics: MetricsAggregator,
    preemption: Preemption,
    profiler: Profiler,
    sample: Callable[[TrainState], None],
  ):
    """Connects the parts of a run; all of several processes do the same.

    Args:
      config: config of the run.
      step: compiled step for the current mesh.
      batches: this process's rows of the batches.
      checkpoints: saves states.
      metrics: collects metrics.
      preemption: polled after every step, and by `sample`.
      profiler: traces some steps.
      sample: writes samples of a state.
    """
    self._plan, self._step, self._batches = config.training, step, batches
    self._checkpoints, self._metrics = checkpoints, metrics
    self._preemption, self._profiler = preemption, profiler
    self._sample = sample
    self._mesh = jax.sharding.get_mesh()
    self._watchdog = Watchdog(config.training.watchdog_seconds)

  def run(self, state: TrainState) -> TrainState:
    """Trains to the last step; samples, saves and logs on the way.

    Raises:
      Preempted: after SIGTERM, once the state is saved.
      FloatingPointError: if too many updates in a row were not finite.
      OSError: if the last checkpoint could not be written, or too many records
        were bad.
    """
    start, last = int(state.step), self._plan.steps
    with (
      Progress("training", last, start) as self._progress,
      self._watchdog,
      contextlib.closing(self._profiler),
    ):
      self._watchdog.beat()
      try:
        batches = self._batches.read(start, last)
        batches = self._metrics.goodput.track_data(batches)
        for number, loaded in enumerate(batches, start + 1):
          state = self._train_step(number, state, loaded)
          if number == last or number % self._plan.checkpoint_every == 0:
            self._save(state)
          self._preemption.poll()
          if number < last and number % self._plan.sample_every == 0:
            self._write_samples(state)
        self._metrics.write()
        self._checkpoints.finish()
        self._write_samples(state)
      except Preempted:
        self._save(state)
        self._metrics.write()
        self._checkpoints.finish()
        raise
    return state

  def _train_step(
    self, number: int, state: TrainState, loaded: LoadedBatch
  ) -> TrainState:
    self._profiler.before_step(number)
    batch = place_batch(loaded.batch, self._mesh, self._plan.batch_rows)
    state, metrics = self._step(state, batch)
    self._profiler.after_step(number, metrics)
    self._metrics.add(number, metrics, loaded)
    self._watchdog.beat()
    if number % self._plan.log_every == 0:
      self._checkpoints.check_for_errors()
    self._progress.show(*self._metrics.latest)
    return state

  def _save(self, state: TrainState) -> None:
    self._metrics.fetch()
    self._progress.show(*self._metrics.latest)
    self._metrics.flush()  # No checkpoint without the metrics before it.
    with self._pause("checkpoint"):
      self._checkpoints.save(state)

  def _write_samples(self, state: TrainState) -> None:
    self._metrics.flush()  # The report reads the file.
    with self._progress.paused(), self._pause("sampling"):
      self._sample(state)

  @contextlib.contextmanager
  def _pause(self, kind: str) -> Iterator[None]:
    """Tracks the time of other work and pauses the watchdog."""
    with self._watchdog.paused(), self._metrics.goodput.track(kind):
      yield
