"""Counts updates that were skipped since they were not finite."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

MAX_NAMED = 16  # Records that a message names.


class NanGuard:
  """Ends a run that skips too many updates in a row.

  Attributes:
    skipped: number of skipped updates of the whole run.
    skipped_before: number of those before this start.
  """

  def __init__(
    self,
    limit: int,
    record_names: Callable[[int], Sequence[str]],
    checkpoint_before: Callable[[int], int | None],
    skipped_before: int = 0,
  ):
    """Starts with no skipped update in a row.

    Args:
      limit: number of skipped updates in a row that ends the run.
      record_names: maps the number of a batch, from 0, to its records.
      checkpoint_before: maps a step to that of the newest checkpoint before it.
      skipped_before: number of skipped updates before this start.
    """
    self.skipped = self.skipped_before = skipped_before
    self._limit, self._record_names = limit, record_names
    self._checkpoint_before = checkpoint_before
    self._row: list[int] = []

  def check(self, step: int, metrics: dict[str, Any]) -> None:
    """Checks the metrics of a step.

    Raises:
      FloatingPointError: if too many updates in a row were skipped. Names the
        first step of the row, its records and the checkpoint before it.
    """
    if metrics["finite"]:
      self._row = []
      return
    self.skipped += 1
    self._row.append(step)
    logging.warning(
      "step %d was skipped: loss %s, gradient norm %s",
      step,
      metrics["loss"],
      metrics["grad_norm"],
    )
    if len(self._row) < self._limit:
      return
    first = self._row[0]
    names = list(self._record_names(first - 1))
    records = ", ".join(names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
      records += f" and {len(names) - MAX_NAMED} more"
    raise FloatingPointError(
      f"{len(self._row)} updates in a row were not finite and were skipped, "
      f"from step {first} on; at step {step} the loss is {metrics['loss']} and "
      f"the gradient norm {metrics['grad_norm']}. Records of step {first}: "
      f"{records}. Parameters are those of step {first - 1}; the last "
      f"checkpoint before it is {self._checkpoint_before(first)}. Lower "
      "config.optimizer.learning_rate or clip, inspect these records, or raise "
      "config.training.max_skipped"
    )
