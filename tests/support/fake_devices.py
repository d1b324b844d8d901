"""Runs scripts beside this file on fake devices, in one process or in two."""

import os
import socket
import subprocess
import sys

from support.configs import ROOT

HERE = ROOT / "tests/distributed"


def start(devices: int, *words) -> str:
  """Runs python on that many fake devices; returns what it printed."""
  return _finish(_begin(devices, *words))


def start_two(devices: int, *words) -> list[str]:
  """Runs python in two processes that talk over localhost.

  Args:
    devices: of each.
    words: what python runs; "process=", "of=" and "port=" are added.
  """
  running = begin_two(devices, *words)
  try:
    return [_finish(process) for process in running]
  finally:
    for process in running:
      process.kill()


def begin_two(devices: int, *words) -> list[subprocess.Popen]:
  """Like `start_two`, but returns the processes while they run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    _begin(devices, *words, f"process={i}", "of=2", f"port={port}")
    for i in range(2)
  ]


def _begin(devices: int, *words) -> subprocess.Popen:
  flags = f"--xla_force_host_platform_device_count={devices}"
  path = os.pathsep.join([str(HERE.parent), str(ROOT)])
  return subprocess.Popen(
    [sys.executable, *map(str, words)],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process: subprocess.Popen) -> str:
  out, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  return out
