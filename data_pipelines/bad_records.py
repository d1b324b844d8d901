"""Records that could not be used: counted, named, and too many stop a run."""

from __future__ import annotations

import logging

FEWEST = 100  # Records below which a share says little.
NAMED = 20  # Faults that the log names one by one, then one in so many.


class Faults:
  """Counts what was asked for of a run's records, and what was broken of it.

  Attributes:
    count: how often a broken record was drawn.
    records: of all draws.
  """

  def __init__(self, limit: float):
    """Starts at nothing.

    Args:
      limit: largest share of broken records that a run goes on with.
    """
    self.count, self.records, self._limit = 0, 0, limit
    self._known: set[str] = set()

  def add(self, faults: tuple[str, ...], records: int) -> None:
    """Takes what was read of a batch.

    Raises:
      OSError: if the share of broken records passes the limit.
    """
    self.records += records
    self.count += len(faults)
    for fault in set(faults) - self._known:  # Not anew in every epoch.
      self._known.add(fault)
      if len(self._known) <= NAMED or len(self._known) % NAMED == 0:
        logging.warning("left out, fault %d: %s", len(self._known), fault)
    if self.count > self._limit * max(self.records, FEWEST):
      raise OSError(
        f"{self.count} of {self.records} records could not be used, more than "
        f"data.bad_limit = {self._limit:g}; the last one: {faults[-1]}. Mend "
        "the data, or raise the limit"
      )
