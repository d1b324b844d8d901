"""Checkpoints: written in the background, committed whole, the last N kept.

`<workdir>/checkpoints/<step>/` holds two items: `ema`, all that sampling needs,
and `train`, the rest of the state. On a disk, Orbax writes to a temporary name
and renames it, so that a kill at any moment leaves only complete checkpoints.
In a store, it writes `commit_success.txt` last and ignores folders without it.
"""

from __future__ import annotations

import logging
import math

import orbax.checkpoint as ocp
from etils import epath

from lumina_jax.files import atomic
from lumina_jax.parallel import processes
from lumina_jax.training import corrupt_checkpoints
from lumina_jax.training.restore import (
  ITEMS,
  CorruptCheckpointError,
  checkpoint_folder,
  first_line,
  restore_items,
)
from lumina_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints of a workdir, to save to and to resume from."""

  def __init__(self, workdir: epath.PathLike, keep: int):
    """Opens the folder for writing and creates it if necessary.

    Args:
      workdir: workdir of the run, on a disk or in a store.
      keep: number of newest checkpoints to keep.
    """
    self._folder = checkpoint_folder(workdir)
    self._keep = keep
    self._corrupt = corrupt_checkpoints.marked_steps(self._folder)
    self._manager = self._open()
    self._last: int | None = None  # Step of the last save, maybe unfinished.

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def save(self, state: TrainState) -> None:
    """Saves a state under its step, in the background.

    A full disk does not stop training: a save that fails is logged as an error,
    earlier checkpoints stay, and the next save starts afresh. `finish` raises
    if the last save failed.

    Raises:
      OSError: if a save fails in one of several processes.
      RuntimeError: if Orbax declines to save.
    """
    self._wait()
    step = int(state.step)
    if step == self.latest_step():
      return
    self._delete_corrupt(step)
    self._last = step
    try:
      saved = self._start_saving(state)
    except (OSError, ValueError) as error:  # tensorstore's are the latter.
      self._handle_failed_save(error)
      return
    if not saved:
      raise RuntimeError(
        f"checkpoint {step} was not written to {self._folder}: the newest "
        f"there is {self._manager.latest_step()}"
      )

  def finish(self) -> None:
    """Waits for the save in progress.

    Raises:
      OSError: if it failed.
    """
    last = self._last
    self._wait()
    if last is not None and self.latest_step() != last:
      raise OSError(
        f"checkpoint {last} could not be written to {self._folder}; the newest "
        f"there is {self.latest_step()}. Free some space, then start the same "
        "command again"
      )

  def check_for_errors(self) -> None:
    """Handles a save that has failed since the last call; does not wait.

    Raises:
      OSError: as `save`.
    """
    try:
      self._manager.check_for_errors()
    except Exception as error:  # Orbax and tensorstore raise many types.
      self._handle_failed_save(error)

  def latest_step(self, before: float = math.inf) -> int | None:
    """Step of the newest complete checkpoint that is not known to be corrupt.

    Args:
      before: only older checkpoints count.
    """
    steps = set(self._manager.all_steps()) - self._corrupt
    if self._manager.is_saving_in_progress():
      steps.discard(self._last)
    return max((step for step in steps if step < before), default=None)

  def restore(self, abstract: TrainState) -> TrainState | None:
    """Restores the newest checkpoint that is intact; None if there are none.

    A corrupt checkpoint is moved to `<step>.corrupt`, which frees its place for
    the next save. In a store, where moving means copying, it stays and an
    object of that name marks it until the run saves that step again.

    Args:
      abstract: shapes and shardings of the state.

    Raises:
      ValueError: if a checkpoint is of another network.
      OSError: if there are checkpoints, but all are corrupt.
    """
    train = abstract._asdict()
    items = {"ema": train.pop("ema"), "train": train}
    names = []
    while (step := self.latest_step()) is not None:
      restored, error = None, ""
      try:
        restored = restore_items(self._manager, step, items)
      except CorruptCheckpointError as raised:
        error = str(raised)
      # Maybe only one of several processes finds it corrupt.
      errors = [text for text in processes.exchange(error) if text]
      if not errors:
        return TrainState(ema=restored["ema"], **restored["train"])
      in_store = atomic.in_store(self._folder)
      set_aside = self._mark_corrupt if in_store else self._move_corrupt
      names.append(set_aside(step, errors[0]))
    if names:
      raise OSError(
        f"no checkpoint in {self._folder} can be read; the corrupt ones are "
        f"kept as {', '.join(names)}. Start again to train from the beginning."
      )
    return None

  def close(self) -> None:
    """Waits for the save in progress and closes the folder.

    Raises:
      OSError: as `save`.
    """
    self._wait()
    self._manager.close()

  def _start_saving(self, state: TrainState) -> bool:
    """Starts a save; tries again if it cannot start."""
    rest = state._asdict()
    ema = rest.pop("ema")
    args = ocp.args.Composite(
      ema=ocp.args.StandardSave(ema), train=ocp.args.StandardSave(rest)
    )
    step = int(state.step)
    try:
      return self._manager.save(step, args=args, force=True)
    except (OSError, ValueError) as error:
      if processes.count() > 1:
        raise
      # Orbax deletes what a failed save left while threads of it still write.
      logging.info("saving again after: %s", error)
    self._reopen()
    return self._manager.save(step, args=args, force=True)

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=corrupt_checkpoints.LatestAndCorrupt(
          self._keep, self._corrupt
        ),
        cleanup_tmp_directories=True,
      ),
      item_names=ITEMS,
    )

  def _reopen(self) -> None:
    """Lists the folder anew and removes what a failed save left there."""
    self._close_manager()
    self._manager = self._open()

  def _close_manager(self) -> None:
    try:
      self._manager.close()
    except Exception as error:  # It waits for a save that has failed.
      logging.debug("closing after a failed save: %s", error)

  def _wait(self) -> None:
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax and tensorstore raise many types.
      self._handle_failed_save(error)

  def _handle_failed_save(self, error: Exception) -> None:
    """Logs a failed save and cleans up.

    Raises:
      OSError: with several processes: the others may wait for this one at any
        point of the save.
    """
    if processes.count() > 1:
      raise OSError(
        f"checkpoint {self._last} was not written ({first_line(error)}); the "
        f"newest is {self.latest_step()}. Check whether the disk of "
        f"{self._folder} is full, then start all processes again"
      ) from error
    self._reopen()
    logging.error(
      "CHECKPOINT %s WAS NOT WRITTEN (%s). Training continues; the newest "
      "checkpoint is %s. Check whether the disk of %s is full",
      self._last,
      first_line(error),
      self.latest_step(),
      self._folder,
    )

  def _move_corrupt(self, step: int, error: str) -> str:
    self._close_manager()
    new = corrupt_checkpoints.free_name(self._folder, step)
    processes.barrier("named")  # Before it exists, all have to choose the name.
    processes.on_first(lambda: (self._folder / str(step)).rename(new))
    corrupt_checkpoints.warn(step, error, f"moved to {new}")
    self._manager = self._open()
    return new.name

  def _mark_corrupt(self, step: int, error: str) -> str:
    mark = self._folder / f"{step}{corrupt_checkpoints.SUFFIX}"
    processes.on_first(lambda: atomic.write_text(mark, f"{error}\n"))
    self._corrupt.add(step)
    corrupt_checkpoints.warn(step, error, f"marked by {mark}")
    return mark.name

  def _delete_corrupt(self, step: int) -> None:
    """Deletes a corrupt checkpoint that the next save replaces."""
    if step not in self._corrupt:
      return
    if step in self._manager.all_steps():
      self._manager.delete(step)
    mark = self._folder / f"{step}{corrupt_checkpoints.SUFFIX}"
    processes.on_first(lambda: mark.unlink(missing_ok=True))
    self._corrupt.remove(step)
