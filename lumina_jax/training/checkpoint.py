"""Checkpoints: written in the background, committed whole, the last N kept.

`<workdir>/checkpoints/<step>/` holds two items: `ema`, all that sampling needs,
and `train`, the rest of the state. Orbax writes to a temporary name and then
renames, so that a process killed at any moment leaves complete ones only.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lumina_jax.training.state import TrainState

FOLDER = "checkpoints"
ITEMS = ("ema", "train")


class Checkpoints:
  """The checkpoints of a workdir, to save to and resume from."""

  def __init__(self, workdir: epath.PathLike, keep: int):
    """Opens the folder, and makes it if need be.

    Args:
      workdir: of the run, on a disk or in a bucket.
      keep: how many of the newest to keep.
    """
    self._folder = epath.Path(workdir).absolute() / FOLDER
    self._keep = keep
    self._manager = self._open()

  def save(self, state: TrainState, wait: bool = False) -> None:
    """Saves a state under its step, in the background unless told to wait.

    Raises:
      RuntimeError: if orbax declined to save.
    """
    step = int(state.step)
    rest = state._asdict()
    ema = rest.pop("ema")
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        ema=ocp.args.StandardSave(ema), train=ocp.args.StandardSave(rest)
      ),
      force=True,
    )
    if not saved:
      raise RuntimeError(
        f"checkpoint {step} was not written to {self._folder}: the newest "
        f"there is {self._manager.latest_step()}"
      )
    if wait:
      self._manager.wait_until_finished()

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def restore(self, abstract: TrainState) -> TrainState | None:
    """Reads the newest checkpoint that can be read whole; None = there is none.

    One that cannot is moved aside as `<step>.corrupt`, never deleted, so that
    the next save finds its place free.

    Args:
      abstract: shapes and shardings to restore to.

    Raises:
      ValueError: if a checkpoint is of another network.
      OSError: if there are checkpoints, but none that can be read.
    """
    wanted = abstract._asdict()
    wanted = {"ema": wanted.pop("ema"), "train": wanted}
    items = self._newest(wanted)
    return items and TrainState(ema=items["ema"], **items["train"])

  def restore_ema(self, abstract: Any) -> Any:
    """Reads the averaged parameters alone; None = there is no checkpoint."""
    items = self._newest({"ema": abstract})
    return items and items["ema"]

  def close(self) -> None:
    """Waits for what is still being written."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(self._keep),
        cleanup_tmp_directories=True,
      ),
      item_names=ITEMS,
    )

  def _newest(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
    moved = []
    while (step := self._manager.latest_step()) is not None:
      try:
        args = {k: ocp.args.StandardRestore(v) for k, v in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in wanted}
      except Exception as error:  # Orbax and tensorstore raise many kinds.
        self._refuse_other_network(step, wanted, error)
        moved.append(self._move_aside(step, error))
    if moved:
      raise OSError(
        f"no checkpoint in {self._folder} can be read; the bad ones are kept "
        f"as {', '.join(moved)}. Start again to train from the beginning."
      )
    return None

  def _refuse_other_network(self, step, wanted, error) -> None:
    """Raises if the files are sound and merely hold other shapes."""
    try:
      found = self._manager.item_metadata(step)
      found = {name: _shapes(found[name].tree) for name in wanted}
    except Exception:
      return  # Metadata that cannot be read: corrupt, not different.
    expected = {name: _shapes(tree) for name, tree in wanted.items()}
    if found != expected:
      names = {
        f"{item}{path}"
        for item, shapes in expected.items()
        for path in shapes.keys() | found[item].keys()
        if shapes.get(path) != found[item].get(path)
      }
      raise ValueError(
        f"checkpoint {step} in {self._folder} is of another network; these "
        f"differ: {', '.join(sorted(names)[:8])}"
      ) from error

  def _move_aside(self, step: int, error: Exception) -> str:
    self._manager.close()
    bad = self._folder / str(step)
    aside, number = bad.with_name(f"{step}.corrupt"), 1
    while aside.exists():
      number += 1
      aside = bad.with_name(f"{step}.corrupt{number}")
    if jax.process_index() == 0:
      bad.rename(aside)
    reason = str(error).strip().split("\n")[0][:200]
    logging.warning(
      "checkpoint %d cannot be read (%s); moved to %s, falling back to the one "
      "before",
      step,
      reason,
      aside,
    )
    self._manager = self._open()
    return aside.name


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_path(path): tuple(leaf.shape) for path, leaf in leaves}


def _path(path: tuple[Any, ...]) -> str:
  """Keys of a path alike for lists, dicts and named tuples."""
  keys = (
    getattr(k, "name", getattr(k, "key", getattr(k, "idx", None))) for k in path
  )
  return "".join(f"/{key}" for key in keys)
