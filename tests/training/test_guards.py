"""Guards of a run: skipped updates, the watchdog, SIGTERM in one process."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.configs import ROOT

from lumina_jax.training.nan_guard import NanGuard
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.watchdog import Watchdog

BAD = {"finite": np.False_, "loss": np.float32("nan"), "grad_norm": np.inf}
GOOD = {"finite": np.True_, "loss": np.float32(1), "grad_norm": 1.0}


def nan_guard(limit=3, skipped_before=0):
  return NanGuard(
    limit,
    lambda i: [f"a{i}.jpg", f"b{i}.jpg"] * 20,
    lambda step: step // 10 * 10,
    skipped_before,
  )


def test_skipped_updates_in_a_row_end_the_run_and_name_their_records(caplog):
  guard = nan_guard()
  guard.check(44, BAD)
  guard.check(45, GOOD)  # Starts a new row.
  guard.check(51, BAD)
  guard.check(52, BAD)
  with pytest.raises(FloatingPointError) as raised:
    guard.check(53, BAD)
  message = str(raised.value)
  assert "from step 51 on" in message and "loss is nan" in message
  assert "a50.jpg, b50.jpg" in message and "24 more" in message
  assert "the last checkpoint before it is 50" in message
  assert guard.skipped == 4 and len(caplog.records) == 4


def test_single_skipped_updates_end_nothing_and_are_counted():
  guard = nan_guard(limit=2, skipped_before=4)
  for step in range(1, 20):
    guard.check(step, BAD if step % 2 else GOOD)
  assert (guard.skipped, guard.skipped_before) == (14, 4)


def wait_for(text, capfd, seconds=20):
  """What standard error holds once the text is there."""
  printed, deadline = "", time.monotonic() + seconds
  while text not in printed and time.monotonic() < deadline:
    time.sleep(0.02)
    printed += capfd.readouterr().err
  return printed


def test_the_watchdog_prints_all_stacks_of_a_step_that_hangs(capfd):
  with Watchdog(0.2) as watchdog:
    time.sleep(0.4)  # No step yet: it may compile.
    watchdog.beat()
    for _ in range(8):  # Steps that are quick enough.
      time.sleep(0.05)
      watchdog.beat()
    with watchdog.paused():
      time.sleep(0.4)
    assert not capfd.readouterr().err
    for _ in range(2):  # Again after the same time.
      printed = wait_for("Timeout", capfd)
      time.sleep(0.05)
      printed += capfd.readouterr().err
      assert "Timeout" in printed and pathlib.Path(__file__).name in printed
  time.sleep(0.4)
  assert not capfd.readouterr().err


@pytest.mark.e2e
def test_the_watchdog_needs_no_interpreter_lock():
  """Native code that hangs may hold the lock."""
  code = (
    "import ctypes\n"
    "from lumina_jax.training.watchdog import Watchdog\n"
    "with Watchdog(0.2) as watchdog:\n"
    "  watchdog.beat()\n"
    "  ctypes.PyDLL(None).usleep(700_000)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and "Timeout" in done.stderr


def test_a_watchdog_of_no_seconds_sleeps(capfd):
  with Watchdog(0) as watchdog:
    watchdog.beat()
    with watchdog.paused():
      time.sleep(0.1)
  assert not capfd.readouterr().err


def test_sigterm_is_reported_at_the_next_poll():
  before = signal.getsignal(signal.SIGTERM)
  with Preemption() as preemption:
    preemption.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
      preemption.poll()
    preemption.poll()  # Only once: saving polls as well.
  assert signal.getsignal(signal.SIGTERM) is before


TWICE = """
import time
from lumina_jax.training.preemption import Preemption
with Preemption():
  print("ready", flush=True)
  time.sleep(60)
"""


@pytest.mark.e2e
def test_a_second_sigterm_exits_at_once():
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
