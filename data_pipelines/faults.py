"""Records that could not be used: counted, named, and too many stop a run."""

from __future__ import annotations

import logging

FEWEST = 100  # Records below which a share says little.
NAMED = 20  # Faults that the log names one by one, then one in so many.


class Faults:
  """Counts broken records of a run.

  Attributes:
    count: of broken records.
    records: of all that were asked for.
  """

  def __init__(self, limit: float):
    """Starts at nothing.

    Args:
      limit: largest share of broken records that a run goes on with.
    """
    self.count, self.records, self._limit = 0, 0, limit

  def add(self, faults: tuple[str, ...], records: int) -> None:
    """Takes what was read of a batch.

    Raises:
      OSError: if the share of broken records passes the limit.
    """
    self.records += records
    for fault in faults:
      self.count += 1
      if self.count <= NAMED or self.count % NAMED == 0:
        logging.warning("left out, fault %d: %s", self.count, fault)
    if self.count > self._limit * max(self.records, FEWEST):
      raise OSError(
        f"{self.count} of {self.records} records could not be used, more than "
        f"data.bad_limit = {self._limit:g}; the last one: {faults[-1]}. Mend "
        "the data, or raise the limit"
      )
