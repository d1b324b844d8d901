"""Corrupt checkpoints: how they are marked and kept."""

import dataclasses
import logging

from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lumina_jax.files import atomic

SUFFIX = ".corrupt"


def marked_steps(folder: epath.Path) -> set[int]:
  """Steps marked as corrupt in a store; on a disk they were moved away."""
  if not atomic.in_store(folder):
    return set()
  return {int(p.name.removesuffix(SUFFIX)) for p in folder.glob(f"*{SUFFIX}")}


def free_name(folder: epath.Path, step: int) -> epath.Path:
  """A name that is free to move a corrupt checkpoint to."""
  path, number = folder / f"{step}{SUFFIX}", 1
  while path.exists():
    number += 1
    path = folder / f"{step}{SUFFIX}{number}"
  return path


def warn(step: int, error: str, action: str) -> None:
  """Warns about a corrupt checkpoint and says what was done with it."""
  logging.warning(
    "checkpoint %d cannot be read (%s); %s, falling back to the one before",
    step,
    error,
    action,
  )


@dataclasses.dataclass
class LatestAndCorrupt(preservation_policy.PreservationPolicy):
  """Preserves the newest checkpoints, and all that are known to be corrupt."""

  number: int
  corrupt: set[int]

  def should_preserve(self, checkpoints, *, context):
    intact = [c.step for c in checkpoints if c.step not in self.corrupt]
    kept = self.corrupt.union(intact[-self.number :])
    return [c.step in kept for c in checkpoints]
