"""Updates that were skipped since they were not finite: too many end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

NAMED = 16  # Records that a message names.


class Skips:
  """Counts batches that changed nothing, in a row.

  Attributes:
    count: of all of the run.
    before: of those, how many before this start.
  """

  def __init__(
    self,
    limit: int,
    names: Callable[[int], Sequence[str]],
    newest: Callable[[int], int | None],
    before: int = 0,
  ):
    """Begins with an empty row.

    Args:
      limit: so many in a row end the run.
      names: number of a batch, from 0 -> its records.
      newest: step -> that of the newest checkpoint before it.
      before: how many there were before this start.
    """
    self.count = self.before = before
    self._limit, self._names, self._newest = limit, names, newest
    self._row: list[int] = []

  def add(self, step: int, values: dict[str, Any]) -> None:
    """Takes the metrics of a step.

    Raises:
      FloatingPointError: naming the first step of the row, the records of its
        batch, and the checkpoint to go back to.
    """
    if values["finite"]:
      self._row = []
      return
    self.count += 1
    self._row.append(step)
    logging.warning(
      "step %d was skipped: loss %s, gradient norm %s",
      step,
      values["loss"],
      values["grad_norm"],
    )
    if len(self._row) < self._limit:
      return
    first = self._row[0]
    names = list(self._names(first - 1))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    raise FloatingPointError(
      f"{len(self._row)} updates in a row were not finite and were skipped, "
      f"from step {first} on; at step {step} the loss is {values['loss']} and "
      f"the gradient norm {values['grad_norm']}. Records of step {first}: "
      f"{', '.join(names[:NAMED])}{more}. Parameters are those of step "
      f"{first - 1}; the last checkpoint before it is {self._newest(first)}. "
      "Try a lower config.optimizer.learning_rate or clip, look at these "
      "records, or raise config.training.max_skipped"
    )
