"""The training loop: steps, and what runs between them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from data_pipelines.batches import Batches, LoadedBatch
from lumina_jax.files.progress import Progress
from lumina_jax.training.aggregator import MetricsAggregator
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.profile import Profiler
from lumina_jax.training.run_config import TrainingConfig
from lumina_jax.training.state import TrainState
from lumina_jax.training.step import Step, place_batch
from lumina_jax.training.watchdog import Watchdog


@dataclasses.dataclass
class TrainingLoop:
  """Trains a state up to the last step; all processes do the same.

  Attributes:
    plan: length of the run, and intervals.
    step: compiled step for the current mesh.
    batches: this process's rows of the batches.
    checkpoints: saves states.
    metrics: collects metrics.
    preemption: polled after every step, and by `sample`.
    profiler: traces some steps.
    sample: writes samples of a state.
  """

  plan: TrainingConfig
  step: Step
  batches: Batches
  checkpoints: Checkpoints
  metrics: MetricsAggregator
  preemption: Preemption
  profiler: Profiler
  sample: Callable[[TrainState], None]

  def __post_init__(self):
    self._mesh = jax.sharding.get_mesh()
    self._watchdog = Watchdog(self.plan.watchdog_seconds)

  def run(self, state: TrainState) -> TrainState:
    """Trains to the last step; samples, saves and logs on the way.

    Raises:
      Preempted: after SIGTERM, once the state is saved.
      FloatingPointError: if too many updates in a row were not finite.
      OSError: if the last checkpoint could not be written, or too many records
        were bad.
    """
    start, last = int(state.step), self.plan.steps
    with (
      Progress("training", last, start) as self._progress,
      self._watchdog,
      contextlib.closing(self.profiler),
    ):
      self._watchdog.beat()
      try:
        batches = self.batches.read(start, last)
        batches = self.metrics.goodput.track_data(batches)
        for number, loaded in enumerate(batches, start + 1):
          state = self._train_step(number, state, loaded)
          if number == last or number % self.plan.checkpoint_every == 0:
            self._save(state)
          self.preemption.poll()
          if number < last and number % self.plan.sample_every == 0:
            self._write_samples(state)
        self.metrics.write()
        self.checkpoints.finish()
        self._write_samples(state)
      except Preempted:
        self._save(state)
        self.metrics.write()
        self.checkpoints.finish()
        raise
    return state

  def _train_step(
    self, number: int, state: TrainState, loaded: LoadedBatch
  ) -> TrainState:
    self.profiler.before_step(number)
    batch = place_batch(loaded.batch, self._mesh, self.plan.batch_rows)
    state, metrics = self.step(state, batch)
    self.profiler.after_step(number, metrics)
    self.metrics.add(number, metrics, loaded)
    self._watchdog.beat()
    if number % self.plan.log_every == 0:
      self.checkpoints.check_for_errors()
    self._progress.show(*self.metrics.latest)
    return state

  def _save(self, state: TrainState) -> None:
    self.metrics.fetch()
    self._progress.show(*self.metrics.latest)
    self.metrics.flush()  # No checkpoint without the metrics before it.
    with self._pause("checkpoint"):
      self.checkpoints.save(state)

  def _write_samples(self, state: TrainState) -> None:
    self.metrics.flush()  # The report reads the file.
    with self._progress.paused(), self._pause("sampling"):
      self.sample(state)

  @contextlib.contextmanager
  def _pause(self, kind: str) -> Iterator[None]:
    """Tracks the time of other work and pauses the watchdog."""
    with self._watchdog.paused(), self.metrics.goodput.track(kind):
      yield
