"""Runs of `lumina_jax.train` in one or more processes, as launchers do it."""

import os
import pathlib
import socket
import subprocess
import sys
import time

from support.configs import ROOT, small_flags


class Run:
  """Processes that train together.

  with Run(2, 4, workdir) as run:
    run.wait_for(10)
    run.processes[1].kill()
    assert run.codes() ...
  """

  def __init__(self, processes: int, devices: int, workdir, **changes):
    """Starts so many processes with so many fake CPU devices each."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.workdir = pathlib.Path(workdir)
    logs = self.workdir.with_suffix(f".logs{time.monotonic_ns()}")
    logs.mkdir(parents=True)
    self.logs = [logs / f"{i}.txt" for i in range(processes)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    words = ["-m", "lumina_jax.train", "--config=configs/digits.py"]
    words += [f"--workdir={workdir}", *small_flags(**changes)]
    self.processes = []
    for number, path in enumerate(self.logs):
      told = {"XLA_FLAGS": flags}
      if processes > 1:
        told |= {
          "LUMINA_COORDINATOR": f"localhost:{port}",
          "LUMINA_NUM_PROCESSES": str(processes),
          "LUMINA_PROCESS_ID": str(number),
        }
      with path.open("w") as log:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | told,
            stdout=log,
            stderr=subprocess.STDOUT,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()

  def wait_for(self, step: int, seconds: float = 300) -> None:
    """Waits until a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + seconds
    while max(self.saved(), default=-1) < step:
      assert time.monotonic() < deadline, self.printed()
      ended = [p.poll() for p in self.processes]
      assert ended == [None] * len(ended), self.printed()
      time.sleep(0.05)

  def saved(self) -> list[int]:
    """Steps of complete checkpoints."""
    folder = self.workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())

  def codes(self, seconds: float = 300) -> list[int]:
    """Exit codes of all processes."""
    return [process.wait(timeout=seconds) for process in self.processes]

  def printed(self) -> list[str]:
    return [path.read_text() for path in self.logs]
