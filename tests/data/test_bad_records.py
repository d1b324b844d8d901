"""Bad records are named and counted, and too many stop a run."""

import pytest

from data_pipelines.bad_records import MIN_RECORDS, BadRecordCounter


def test_bad_records_are_named_once_and_counted(caplog):
  counter = BadRecordCounter(0.5)
  for number in range(30):
    counter.add((f"file {number}: cut short",) * 2, 10)
  assert counter.count == 60 and counter.records == 300
  messages = [r.getMessage() for r in caplog.records]
  assert len(messages) == 20 and "file 0: cut short" in messages[0]
  caplog.clear()
  BadRecordCounter(0.5, log=False).add(("a",), 1)
  assert not caplog.records


def test_too_many_bad_records_stop_the_run():
  counter = BadRecordCounter(0.1)
  counter.add(("a",) * (MIN_RECORDS // 10), 10)  # So few records say little.
  with pytest.raises(OSError, match=r"data.bad_limit = 0.1; the last one: b"):
    counter.add(("b",), 1)


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_is_a_share(limit):
  with pytest.raises(ValueError, match=r"--max_bad = .*: must be a share"):
    BadRecordCounter(limit, option="--max_bad")
