"""Runs scripts and commands on fake devices, in one process or in several."""

import json
import pathlib
import socket

from support import zygote
from support.configs import ROOT

SCRIPTS = ROOT / "tests/distributed"


def run(devices: int, target: str | pathlib.Path, *words) -> str:
  """Runs a script or a command; returns what it printed.

  Args:
    devices: number of fake devices.
    target: a script, or a module such as "lumina_jax.infer".
    words: its arguments.
  """
  return _finish(zygote.start(target, *words, devices=devices))


def start_all(
  processes: int, devices: int, target: str | pathlib.Path, *words
) -> list[zygote.Process]:
  """Starts processes that find each other through LUMINA_COORDINATOR.

  Args:
    processes: number of processes; a single one finds no others.
    devices: number of fake devices of each.
    target: a script, or a module such as "lumina_jax.train".
    words: its arguments.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    zygote.start(
      target,
      *words,
      devices=devices,
      LUMINA_COORDINATOR=f"localhost:{port}" if processes > 1 else "",
      LUMINA_NUM_PROCESSES=str(processes),
      LUMINA_PROCESS_ID=str(number),
    )
    for number in range(processes)
  ]


def run_all(
  processes: int, devices: int, target: str | pathlib.Path, *words
) -> list[str]:
  """Like `start_all`; returns what each process printed."""
  running = start_all(processes, devices, target, *words)
  try:
    return [_finish(process) for process in running]
  finally:
    for process in running:
      process.kill()


def lines(text: str) -> list[str]:
  """Lines of an output, without those of the transport between processes."""
  return [line for line in text.splitlines() if "[Gloo]" not in line]


def result(text: str):
  """The JSON in the last line of an output."""
  return json.loads(lines(text)[-1])


def _finish(process: zygote.Process) -> str:
  assert process.wait() == 0, process.output()
  return process.stdout
