"""Reads checkpoints, and finds out why one cannot be read."""

import errno
import functools
import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lumina_jax.files import atomic
from lumina_jax.training.corrupt_checkpoints import marked_steps

FOLDER = "checkpoints"
ITEMS = ("ema", "train")
COMMITTED = "commit_success.txt"  # Orbax writes it last, in a store.

# Errors of the moment: memory, permissions, network.
TRANSIENT = (
  MemoryError,
  PermissionError,
  ConnectionError,
  TimeoutError,
  jax.errors.JaxRuntimeError,
)
TRANSIENT_CODES = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES
TRANSIENT_STATES = (
  "RESOURCE_EXHAUSTED",
  "UNAVAILABLE",
  "PERMISSION_DENIED",
  "DEADLINE_EXCEEDED",
)


class CorruptCheckpointError(Exception):
  """The files of a checkpoint are damaged."""


def checkpoint_folder(workdir: epath.PathLike) -> epath.Path:
  """The folder of all checkpoints; Orbax needs an absolute path."""
  folder = epath.Path(workdir)
  if not atomic.in_store(folder):  # There, epath would make it a local path.
    folder = folder.absolute()
  return folder / FOLDER


def has_checkpoint(workdir: epath.PathLike) -> bool:
  """Whether a run has saved a complete checkpoint."""
  folder = epath.Path(workdir) / FOLDER
  entries = folder.iterdir() if folder.exists() else ()
  steps = [path for path in entries if path.name.isdigit()]
  if atomic.in_store(folder):  # There, a folder may be incomplete.
    steps = [path for path in steps if (path / COMMITTED).exists()]
  return bool(steps)


def read_ema(workdir: epath.PathLike, abstract: Any) -> tuple[int, Any] | None:
  """Reads the EMA parameters of the newest intact checkpoint.

  Changes nothing in the workdir, where a run may be in progress.

  Args:
    workdir: workdir of the run.
    abstract: shapes and shardings of the parameters.

  Returns:
    Step and parameters, or None if there is no checkpoint.

  Raises:
    ValueError: if the checkpoint is of another network.
    OSError: if there are checkpoints, but all are corrupt.
  """
  folder = checkpoint_folder(workdir)
  corrupt = marked_steps(folder)
  while True:
    # Opened anew each time: a run in progress adds and deletes checkpoints.
    with _open_read_only(folder) as manager:
      steps = set(manager.all_steps()) - corrupt
      if not steps:
        break
      step = max(steps)
      try:
        return step, restore_items(manager, step, {"ema": abstract})["ema"]
      except CorruptCheckpointError as error:
        logging.warning("checkpoint %d cannot be read (%s)", step, error)
        corrupt.add(step)
  if corrupt:
    raise OSError(f"no checkpoint in {folder} can be read: {sorted(corrupt)}")
  return None


def restore_items(
  manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any]
) -> dict[str, Any]:
  """Restores items of a checkpoint.

  Args:
    manager: manager of the folder.
    step: step of the checkpoint.
    abstract: shapes and shardings of each item, by its name.

  Raises:
    CorruptCheckpointError: if its files are damaged.
    ValueError: if its files are intact but belong to another network.
    OSError: if the error is transient; other types are possible.
  """
  # Not by the manager, which makes processes wait for each other, even for
  # those that have failed.
  handler, restored = ocp.StandardCheckpointHandler(), {}
  try:
    for name, item in abstract.items():
      path = manager.directory / str(step) / name
      args = ocp.args.StandardRestore(item)
      restored[name] = handler.restore(path, args=args)
  except Exception as error:  # Orbax and tensorstore raise many types.
    if _is_transient(error):
      raise
    _check_shapes(manager.directory, step, abstract, error)
    raise CorruptCheckpointError(first_line(error)) from error
  return restored


def first_line(error: Exception) -> str:
  """The message of an error without the lines that tensorstore adds."""
  return str(error).strip().split("\n")[0][:200]


def _open_read_only(folder: epath.Path) -> ocp.CheckpointManager:
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)  # Orbax warns that it opens read-only.
  try:
    return ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(read_only=True),
      item_names=ITEMS,
    )
  finally:
    logger.setLevel(level)


def _is_transient(error: Exception) -> bool:
  return (
    isinstance(error, TRANSIENT)
    or getattr(error, "errno", None) in TRANSIENT_CODES
    or any(state in str(error) for state in TRANSIENT_STATES)
  )


def _check_shapes(folder, step, abstract, error) -> None:
  """Raises a ValueError if the files are intact but hold other shapes."""
  try:
    # The manager's own item_metadata is empty before its first restore.
    handler = ocp.StandardCheckpointHandler()
    saved = {
      name: _shapes(handler.metadata(folder / str(step) / name).tree)
      for name in abstract
    }
  except Exception:
    return  # The metadata are damaged: corrupt, not different.
  expected = {name: _shapes(tree) for name, tree in abstract.items()}
  if saved == expected:
    return
  names = {
    f"{item}/{path}"
    for item, shapes in expected.items()
    for path in shapes.keys() | saved[item].keys()
    if shapes.get(path) != saved[item].get(path)
  }
  raise ValueError(
    f"checkpoint {step} in {folder} is of another network; these differ: "
    f"{', '.join(sorted(names)[:8])}"
  ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  # Keys of lists, dicts and named tuples look the same.
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}
