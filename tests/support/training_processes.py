"""Runs of `lumina_jax.train` in one or more processes, as by a launcher."""

import pathlib
import time

from support.configs import small_flags
from support.fake_devices import start_all


class Run:
  """Processes that train together.

  with Run(2, 4, workdir) as run:
    run.wait_for(10)
    run.processes[1].kill()
    assert run.codes() ...
  """

  def __init__(self, processes: int, devices: int, workdir, **changes):
    """Starts processes with a number of fake CPU devices each."""
    self.workdir = pathlib.Path(workdir)
    flags = ["--config=configs/digits.py", f"--workdir={workdir}"]
    self.processes = start_all(
      processes, devices, "lumina_jax.train", *flags, *small_flags(**changes)
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()

  def wait_for(self, step: int, seconds: float = 300) -> None:
    """Waits for a checkpoint of this step or a later one."""
    deadline = time.monotonic() + seconds
    while max(self.checkpoints(), default=-1) < step:
      assert time.monotonic() < deadline, self.printed()
      codes = [process.poll() for process in self.processes]
      assert codes == [None] * len(codes), self.printed()
      time.sleep(0.05)

  def checkpoints(self) -> list[int]:
    """Steps of complete checkpoints."""
    folder = self.workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())

  def codes(self, seconds: float = 300) -> list[int]:
    """Exit codes of all processes."""
    return [process.wait(timeout=seconds) for process in self.processes]

  def printed(self) -> list[str]:
    """Output and errors of each process."""
    return [process.output() for process in self.processes]
