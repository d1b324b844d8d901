"""The loop of training: steps, and what goes on between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from data_pipelines.batches import Batches
from lumina_jax.files.progress import Progress
from lumina_jax.training.aggregator import Window
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.profile import Profile
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState
from lumina_jax.training.step import Step, place_batch
from lumina_jax.training.watchdog import Watchdog


class Loop:
  """Takes a state from its step to the last one.

  Attributes:
    window: of the metrics.
  """

  def __init__(
    self,
    config: RunConfig,
    step: Step,
    batches: Batches,
    saved: Checkpoints,
    window: Window,
    preemption: Preemption,
    profile: Profile,
    draw: Callable[[TrainState], None],
  ):
    """Takes the parts of a run; of several processes, all run it alike.

    Args:
      config: of the run.
      step: compiled; it runs on the mesh in force.
      batches: this process's rows of them.
      saved: where states go.
      window: where metrics go.
      preemption: polled after every step, and by `draw`.
      profile: which steps are traced.
      draw: makes pictures of a state.
    """
    self._plan, self._step, self._batches = config.training, step, batches
    self._saved, self._preemption, self._profile = saved, preemption, profile
    self._draw, self.window = draw, window
    self._mesh = jax.sharding.get_mesh()
    self._watchdog = Watchdog(config.training.watchdog_seconds)

  def run(self, state: TrainState) -> TrainState:
    """Trains to the last step; draws, saves and logs on the way.

    Raises:
      Preempted: once it was told to stop, and the state is saved.
      FloatingPointError: if too many updates in a row were not finite.
      OSError: if the last checkpoint could not be written, or too many records
        were broken.
    """
    start, last = int(state.step), self._plan.steps
    with (
      Progress("training", last, start) as self._progress,
      self._watchdog,
      contextlib.closing(self._profile),
    ):
      self._watchdog.beat(start)
      try:
        reading = self._batches.read(start, last)
        waited = self.window.ledger.waiting(reading)
        for number, loaded in enumerate(waited, start + 1):
          state = self._advance(number, state, loaded)
          if number == last or number % self._plan.checkpoint_every == 0:
            self._save(state)
          self._preemption.check()
          if number < last and number % self._plan.sample_every == 0:
            self._show(state)
        self.window.write()
        self._saved.finish()
        self._show(state)
      except Preempted:
        self._save(state)
        self.window.write()
        self._saved.finish()
        raise
    return state

  def _advance(self, number, state, loaded) -> TrainState:
    self._profile.before(number)
    batch = place_batch(loaded.batch, self._mesh, self._plan.batch_rows)
    state, values = self._step(state, batch)
    self._profile.after(number, values)
    self.window.add(number, values, loaded)
    self._watchdog.beat(number)
    if number % self._plan.log_every == 0:
      self._saved.look()
    self._progress.show(*self.window.shown)
    return state

  def _save(self, state: TrainState) -> None:
    self.window.finish()
    self._progress.show(*self.window.shown)
    self.window.flush()  # No checkpoint without the lines before it.
    with self._spend("saving"):
      self._saved.save(state)

  def _show(self, state: TrainState) -> None:
    self.window.flush()  # The report reads what is written.
    with self._progress.paused(), self._spend("sampling"):
      self._draw(state)

  @contextlib.contextmanager
  def _spend(self, kind: str) -> Iterator[None]:
    with self._watchdog.paused(), self.window.ledger.spend(kind):
      yield
