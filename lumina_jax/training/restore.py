"""Reading a checkpoint, and telling why one cannot be read."""

from __future__ import annotations

import errno
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class Unreadable(Exception):
  """A checkpoint whose files are broken."""


def read(
  manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any]
) -> dict[str, Any]:
  """Reads items of a checkpoint.

  Args:
    manager: of the folder.
    step: of the checkpoint.
    wanted: shapes and shardings of each item, by its name.

  Raises:
    Unreadable: if its files are broken.
    ValueError: if they are sound, but of another network.
    OSError: if the fault is of the moment, as are some other kinds.
  """
  # By the handler: the manager makes processes wait for each other, for those
  # as well that have failed.
  handler, restored = ocp.StandardCheckpointHandler(), {}
  try:
    for name, item in wanted.items():
      at = manager.directory / str(step) / name
      restored[name] = handler.restore(at, args=ocp.args.StandardRestore(item))
  except Exception as error:  # Orbax and tensorstore raise many kinds.
    if _passing(error):
      raise
    _refuse_other_network(manager, step, wanted, error)
    raise Unreadable(first_line(error)) from error
  return restored


def holds(
  manager: ocp.CheckpointManager, step: int, item: str, name: str
) -> bool:
  """Whether an item has an entry of a name; True if it cannot be told."""
  handler, at = ocp.StandardCheckpointHandler(), manager.directory / str(step)
  try:
    return name in handler.metadata(at / item).tree
  except Exception:  # Reading it will say what is wrong.
    return True


def zero(like: Any) -> Any:
  """A 0 of a shape, where it shall lie."""
  number = np.zeros(like.shape, like.dtype)
  if getattr(like, "sharding", None) is None:
    return number
  return jax.make_array_from_callback(
    like.shape, like.sharding, number.__getitem__
  )


def first_line(error: Exception) -> str:
  """What an error says, without what orbax and tensorstore add in lines."""
  return str(error).strip().split("\n")[0][:200]


def _passing(error: Exception) -> bool:
  """Whether the fault is of the moment (memory, rights, net)."""
  kinds = (
    MemoryError,
    PermissionError,
    ConnectionError,
    TimeoutError,
    jax.errors.JaxRuntimeError,
  )
  codes = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES
  states = "RESOURCE_EXHAUSTED UNAVAILABLE PERMISSION_DENIED DEADLINE_EXCEEDED"
  return (
    isinstance(error, kinds)
    or getattr(error, "errno", None) in codes
    or any(state in str(error) for state in states.split())
  )


def _refuse_other_network(manager, step, wanted, error) -> None:
  """Raises if the files are sound and merely hold other shapes."""
  try:
    # The manager's own item_metadata is empty before a first restore.
    handler, saved = ocp.StandardCheckpointHandler(), manager.directory
    found = {
      name: _shapes(handler.metadata(saved / str(step) / name).tree)
      for name in wanted
    }
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
      f"checkpoint {step} in {manager.directory} is of another network; these "
      f"differ: {', '.join(sorted(names)[:8])}"
    ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_path(path): tuple(leaf.shape) for path, leaf in leaves}


def _path(path: tuple[Any, ...]) -> str:
  """Keys of a path alike for lists, dicts and named tuples."""
  keys = (
    getattr(k, "name", getattr(k, "key", getattr(k, "idx", None))) for k in path
  )
  return "".join(f"/{key}" for key in keys)
