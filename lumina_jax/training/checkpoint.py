"""Checkpoints: written in the background, committed whole, the last N kept.

`<workdir>/checkpoints/<step>/` holds two items: `ema`, all that sampling needs,
and `train`, the rest of the state. Orbax writes to a temporary name and then
renames, so that a process killed at any moment leaves complete ones only. In a
store it writes `commit_success.txt` last, and takes what has none for rubbish.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from lumina_jax.files import atomic
from lumina_jax.parallel import processes
from lumina_jax.training import corrupt_checkpoints as broken
from lumina_jax.training import restore as restoring
from lumina_jax.training.restore import Unreadable, first_line
from lumina_jax.training.state import TrainState

FOLDER = "checkpoints"
ITEMS = ("ema", "train")
COMMITTED = "commit_success.txt"  # Orbax writes it last.


class Checkpoints:
  """The checkpoints of a workdir, to save to and resume from."""

  def __init__(self, workdir: epath.PathLike, keep: int):
    """Opens the folder to write to, and makes it if need be.

    Args:
      workdir: of the run, on a disk or in a bucket.
      keep: how many of the newest to keep.
    """
    self._folder = _folder(workdir)
    self._keep = keep
    self._bad = broken.marked(self._folder)
    self._manager = self._open()
    self._last: int | None = None  # Step of the save that may be under way.

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def save(self, state: TrainState) -> None:
    """Saves a state under its step, in the background.

    A full disk stops no training: a save that fails is told of loudly, those
    before it stay, and the next one is tried as if nothing had been. Whether
    the last one came through is for `finish` to say.

    Raises:
      OSError: if it fails in one of several processes.
      RuntimeError: if orbax declined to save.
    """
    self._settle()
    step = int(state.step)
    if step == self.latest_step():
      return
    self._make_room(step)
    rest = state._asdict()
    ema = rest.pop("ema")
    self._last = step
    try:
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          ema=ocp.args.StandardSave(ema), train=ocp.args.StandardSave(rest)
        ),
        force=True,
      )
    except (OSError, ValueError) as error:  # tensorstore's are the latter.
      self._report(error)
      return
    if not saved:
      raise RuntimeError(
        f"checkpoint {step} was not written to {self._folder}: the newest "
        f"there is {self._manager.latest_step()}"
      )

  def finish(self) -> None:
    """Waits for the save under way.

    Raises:
      OSError: if it has failed.
    """
    asked = self._last
    self._settle()
    if asked is not None and self.latest_step() != asked:
      raise OSError(
        f"checkpoint {asked} could not be written to {self._folder}; the "
        f"newest there is {self.latest_step()}. Make room, then start the same "
        "command again"
      )

  def _settle(self) -> None:
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax and tensorstore raise many kinds.
      self._report(error)

  def _report(self, error: Exception) -> None:
    """Tells of a save that failed, and clears up behind it.

    Raises:
      OSError: in several processes, where the others may be waiting for this
        one within the save, each at another point.
    """
    if processes.count() > 1:
      raise OSError(
        f"checkpoint {self._last} was not written ({first_line(error)}); the "
        f"newest is {self.latest_step()}. Look whether the disk of "
        f"{self._folder} is full, then start all processes again"
      ) from error
    self._close()
    # Anew, it lists what is there, and removes what the failed save has left.
    self._manager = self._open()
    logging.error(
      "CHECKPOINT %s WAS NOT WRITTEN (%s). Training goes on; the newest "
      "checkpoint is %s. Look whether the disk of %s is full",
      self._last,
      first_line(error),
      self.latest_step(),
      self._folder,
    )

  def latest_step(self, before: float = math.inf) -> int | None:
    """Step of the newest complete checkpoint, broken ones left out.

    Args:
      before: a step that it has to be older than.
    """
    steps = set(self._manager.all_steps()) - self._bad
    if self._manager.is_saving_in_progress():
      steps.discard(self._last)
    return max((step for step in steps if step < before), default=None)

  def look(self) -> None:
    """Tells of a save that has failed meanwhile; waits for nothing.

    Raises:
      OSError: as `save`.
    """
    try:
      self._manager.check_for_errors()
    except Exception as error:  # Orbax and tensorstore raise many kinds.
      self._report(error)

  def restore(self, abstract: TrainState) -> TrainState | None:
    """Reads the newest checkpoint that can be read whole; None = there is none.

    One that cannot is moved aside as `<step>.corrupt`, so that the next save
    finds its place free. In a store, where to move is to copy, it stays and an
    object of that name marks it, until the run comes to that step again.

    Args:
      abstract: shapes and shardings to restore to.

    Raises:
      ValueError: if a checkpoint is of another network.
      OSError: if there are checkpoints, but none that can be read.
    """
    wanted = abstract._asdict()
    wanted = {"ema": wanted.pop("ema"), "train": wanted}
    moved = []
    while (step := self.latest_step()) is not None:
      items, fault = None, ""
      try:
        items = self._read(step, wanted)
      except Unreadable as error:
        fault = str(error)
      # One of several processes may be the only one to read what is broken.
      faults = [said for said in processes.exchange(fault) if said]
      if not faults:
        return TrainState(ema=items["ema"], **items["train"])
      in_store = atomic.in_store(self._folder)
      set_aside = self._mark if in_store else self._move_aside
      moved.append(set_aside(step, faults[0]))
    if moved:
      raise OSError(
        f"no checkpoint in {self._folder} can be read; the bad ones are kept "
        f"as {', '.join(moved)}. Start again to train from the beginning."
      )
    return None

  def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
    rest = wanted["train"]
    if not restoring.holds(self._manager, step, "train", "skipped"):
      # Runs of before counted no skipped batches, as they skipped none.
      rest = {name: x for name, x in rest.items() if name != "skipped"}
    items = restoring.read(self._manager, step, wanted | {"train": rest})
    items["train"].setdefault(
      "skipped", restoring.zero(wanted["train"]["skipped"])
    )
    return items

  def close(self) -> None:
    """Waits for what is still being written.

    Raises:
      OSError: as `save`.
    """
    self._settle()
    self._manager.close()

  def _close(self) -> None:
    try:
      self._manager.close()
    except Exception as error:  # It waits for the save that has failed.
      logging.debug("closing after a failed save: %s", error)

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=broken.Latest(self._keep, self._bad),
        cleanup_tmp_directories=True,
      ),
      item_names=ITEMS,
    )

  def _move_aside(self, step: int, fault: str) -> str:
    self._close()
    bad = self._folder / str(step)
    aside, number = bad.with_name(f"{step}{broken.MARK}"), 1
    while aside.exists():
      number += 1
      aside = bad.with_name(f"{step}{broken.MARK}{number}")
    processes.barrier("named")  # All have looked before it is there.
    processes.on_first(lambda: bad.rename(aside))
    broken.warn(step, fault, f"moved to {aside}")
    self._manager = self._open()
    return aside.name

  def _mark(self, step: int, fault: str) -> str:
    mark = self._folder / f"{step}{broken.MARK}"
    processes.on_first(lambda: atomic.write_text(mark, f"{fault}\n"))
    self._bad.add(step)
    broken.warn(step, fault, f"marked by {mark}")
    return mark.name

  def _make_room(self, step: int) -> None:
    """Deletes a broken checkpoint where a whole one is about to be saved."""
    if step not in self._bad:
      return
    if step in self._manager.all_steps():
      self._manager.delete(step)
    mark = self._folder / f"{step}{broken.MARK}"
    processes.on_first(lambda: mark.unlink(missing_ok=True))
    self._bad.remove(step)


def has_checkpoint(workdir: epath.PathLike) -> bool:
  """Whether a run has saved a checkpoint."""
  folder = epath.Path(workdir) / FOLDER
  entries = folder.iterdir() if folder.exists() else ()
  steps = [path for path in entries if path.name.isdigit()]
  if atomic.in_store(folder):  # There a folder may be incomplete.
    steps = [path for path in steps if (path / COMMITTED).exists()]
  return bool(steps)


def _folder(workdir: epath.PathLike) -> epath.Path:
  """Of all checkpoints, by its absolute path, which orbax asks for."""
  folder = epath.Path(workdir)
  if not atomic.in_store(folder):  # There epath would make it a local one.
    folder = folder.absolute()
  return folder / FOLDER


def read_ema(workdir: epath.PathLike, abstract: Any) -> tuple[int, Any] | None:
  """Reads the averaged parameters of the newest readable checkpoint.

  Changes nothing in the workdir, where training may be going on.

  Args:
    workdir: of the run.
    abstract: shapes and shardings to restore to.

  Returns:
    Step and parameters, or None if there is no checkpoint.

  Raises:
    ValueError: if the checkpoint is of another network.
    OSError: if there are checkpoints, but none that can be read.
  """
  folder = _folder(workdir)
  tried = broken.marked(folder)
  while True:
    # Opened anew each time: a run that goes on adds steps and drops old ones.
    with _reader(folder) as manager:
      steps = set(manager.all_steps()) - tried
      if not steps:
        break
      step = max(steps)
      try:
        return step, restoring.read(manager, step, {"ema": abstract})["ema"]
      except Unreadable as error:
        logging.warning("checkpoint %d cannot be read (%s)", step, error)
        tried.add(step)
  if tried:
    raise OSError(f"no checkpoint in {folder} can be read: {sorted(tried)}")
  return None


def _reader(folder: epath.Path) -> ocp.CheckpointManager:
  logger = logging.getLogger("absl")
  level = logger.level
  # Orbax warns that what is asked to be read-only is read-only.
  logger.setLevel(logging.ERROR)
  try:
    return ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(read_only=True),
      item_names=ITEMS,
    )
  finally:
    logger.setLevel(level)
