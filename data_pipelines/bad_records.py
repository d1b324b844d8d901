"""Counts bad records and stops a run that has too many of them."""

import logging
from collections.abc import Sequence

MIN_RECORDS = 100  # Shares of fewer records say little.
MAX_LOGGED = 20  # Bad records that are logged one by one, then every 20th.


class BadRecordCounter:
  """Counts records, and the bad ones among them.

  Attributes:
    count: number of bad records.
    records: number of all records.
  """

  def __init__(
    self, limit: float, option: str = "data.bad_limit", log: bool = True
  ):
    """Starts at zero.

    Args:
      limit: largest share of bad records.
      option: name of the option that sets the limit, for messages.
      log: whether to log bad records, each once.

    Raises:
      ValueError: if the limit is not from 0 to 1.
    """
    if not 0 <= limit <= 1:
      raise ValueError(f"{option} = {limit:g}: must be a share from 0 to 1")
    self.count, self.records = 0, 0
    self._limit, self._option, self._log = limit, option, log
    self._known: set[str] = set()

  def add(self, bad: Sequence[str], records: int) -> None:
    """Counts records that were read.

    Args:
      bad: messages of the bad ones.
      records: number of all of them.

    Raises:
      OSError: if the share of bad records exceeds the limit.
    """
    self.records += records
    self.count += len(bad)
    if self._log:
      self._log_new(bad)
    if bad and self.count > self._limit * max(self.records, MIN_RECORDS):
      raise OSError(
        f"{self.count} of {self.records} records could not be used, more than "
        f"{self._option} = {self._limit:g}; the last one: {bad[-1]}. Fix the "
        "data, or raise the limit"
      )

  def _log_new(self, bad: Sequence[str]) -> None:
    for message in dict.fromkeys(bad):
      if message in self._known:
        continue  # Every epoch meets it again.
      self._known.add(message)
      number = len(self._known)
      if number <= MAX_LOGGED or number % MAX_LOGGED == 0:
        logging.warning("bad record %d left out: %s", number, message)
