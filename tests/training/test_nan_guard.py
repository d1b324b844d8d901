"""Guards: skipped updates, the watchdog, time, and SIGTERM in one process."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.configs import ROOT

from lumina_jax.training.goodput import Ledger
from lumina_jax.training.nan_guard import Skips
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.watchdog import Watchdog

BAD = {"finite": np.False_, "loss": np.float32("nan"), "grad_norm": np.inf}
GOOD = {"finite": np.True_, "loss": np.float32(1), "grad_norm": 1.0}


def skips(limit=3):
  return Skips(
    limit,
    lambda i: [f"a{i}.jpg", f"b{i}.jpg"] * 20,
    lambda step: step // 10 * 10,
  )


def test_skips_in_a_row_end_the_run_and_say_where_it_went_wrong(caplog):
  guard = skips()
  guard.add(44, BAD)
  guard.add(45, GOOD)  # A row begins anew.
  guard.add(51, BAD)
  guard.add(52, BAD)
  with pytest.raises(FloatingPointError) as raised:
    guard.add(53, BAD)
  message = str(raised.value)
  assert "from step 51 on" in message and "loss is nan" in message
  assert "a50.jpg, b50.jpg" in message and "24 more" in message
  assert "the last checkpoint before it is 50" in message
  assert guard.count == 4 and len(caplog.records) == 4


def test_skips_apart_end_nothing():
  guard = skips(2)
  for step in range(1, 20):
    guard.add(step, BAD if step % 2 else GOOD)
  assert guard.count == 10


def test_the_watchdog_tells_of_a_step_that_takes_too_long(capfd):
  with Watchdog(0.2) as watchdog:
    time.sleep(0.5)  # No step yet: it may compile.
    assert not capfd.readouterr().err
    watchdog.beat(7)
    with watchdog.paused():
      time.sleep(0.5)
    assert not capfd.readouterr().err
    deadline = time.monotonic() + 20
    printed = ""
    while "WATCHDOG" not in printed and time.monotonic() < deadline:
      time.sleep(0.05)
      printed += capfd.readouterr().err
    time.sleep(0.1)
    printed += capfd.readouterr().err
  assert "since step 7" in printed and __file__.split("/")[-1] in printed


def test_a_watchdog_of_no_seconds_is_asleep():
  with Watchdog(0) as watchdog:
    watchdog.beat(1)
    assert not watchdog._thread.is_alive()


def test_all_time_is_booked_once():
  ledger = Ledger()
  with ledger.spend("sampling"):
    time.sleep(0.02)
  assert ledger.training == 0 and ledger.started() and not ledger.started()
  for _ in ledger.waiting(iter([1, 2])):
    time.sleep(0.05)
  parts = ledger.training + sum(ledger.spent.values())
  assert parts == pytest.approx(ledger.total, abs=0.005)
  assert ledger.training >= 0.1 and ledger.spent["sampling"] >= 0.02
  assert "training" in ledger.summary()


def test_sigterm_is_told_at_the_next_poll():
  before = signal.getsignal(signal.SIGTERM)
  with Preemption() as preemption:
    preemption.check()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
      preemption.check()
    preemption.check()  # Once is enough: saving may poll as well.
  assert signal.getsignal(signal.SIGTERM) is before


TWICE = """
import time
from lumina_jax.training.preemption import Preemption
with Preemption():
  print("ready", flush=True)
  time.sleep(60)
"""


def test_a_second_sigterm_leaves_at_once():
  process = subprocess.Popen(
    [sys.executable, "-c", TWICE],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  assert "stops after this step" in process.stderr.readline() + (
    process.stderr.readline()
  )
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_skips_of_an_earlier_start_count_on():
  guard = Skips(3, lambda _: [], lambda _: None, before=4)
  guard.add(90, BAD)
  assert (guard.count, guard.before) == (5, 4)
