"""Checkpoints that are known to be broken, and what is done about them."""

from __future__ import annotations

import dataclasses
import logging

from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lumina_jax.files import atomic

MARK = ".corrupt"


def marked(folder: epath.Path) -> set[int]:
  """Steps that were found broken in a store; on a disk they were moved."""
  if not atomic.in_store(folder):
    return set()
  return {int(p.name.removesuffix(MARK)) for p in folder.glob(f"*{MARK}")}


def warn(step: int, fault: str, done: str) -> None:
  """Tells of a checkpoint that cannot be read, and of what was done with it."""
  logging.warning(
    "checkpoint %d cannot be read (%s); %s, falling back to the one before",
    step,
    fault,
    done,
  )


@dataclasses.dataclass
class Latest(preservation_policy.PreservationPolicy):
  """Keeps the newest ones, and beside them those known to be broken."""

  number: int
  bad: set[int]

  def should_preserve(self, checkpoints, *, context):
    sound = [c.step for c in checkpoints if c.step not in self.bad]
    kept = self.bad.union(sound[-self.number :])
    return [c.step in kept for c in checkpoints]
