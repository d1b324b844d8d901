"""Python processes that start at once: forks of one that has imported all.

A server imports what a process needs, starts no JAX backend, and forks. A child
has arguments, environment, streams and an exit code of its own, like
`python -m lumina_jax.train`, without seconds of imports.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
# Modules that commands import at the top or later.
TRAIN = (
  "lumina_jax.train",
  "sklearn.datasets",
  "tensorboardX",
  "jax.experimental.multihost_utils",
)
NEEDS = {
  "lumina_jax.train": TRAIN,
  "lumina_jax.sample": ("lumina_jax.cli", "lumina_jax.infer"),
  "lumina_jax.evaluate": ("lumina_jax.evaluate", "sklearn.datasets"),
}


class Process:
  """A running fork, used like `subprocess.Popen`."""

  def __init__(self, pid: int, folder: pathlib.Path):
    self.pid, self._folder = pid, folder

  def poll(self) -> int | None:
    """The exit code; None while it runs."""
    try:
      return int((self._folder / "code").read_text())
    except FileNotFoundError:
      return None

  def wait(self, timeout: float = 600) -> int:
    """Waits for the exit code."""
    end = time.monotonic() + timeout
    while (code := self.poll()) is None:
      assert time.monotonic() < end, f"still running:\n{self.output()}"
      time.sleep(0.01)
    return code

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  @property
  def stdout(self) -> str:
    return (self._folder / "stdout").read_text()

  @property
  def stderr(self) -> str:
    return (self._folder / "stderr").read_text()

  def output(self) -> str:
    return self.stdout + self.stderr


def start(target, *words, devices: int = 1, **env: str) -> Process:
  """Starts a process.

  Args:
    target: a script, or a module of a command, such as "lumina_jax.train".
    words: its arguments.
    devices: number of fake CPU devices.
    env: additional environment variables.
  """
  server, folder = _server(), pathlib.Path(tempfile.mkdtemp(dir=_folder()))
  for name in ("stdout", "stderr"):
    (folder / name).touch()
  job = [str(target), [str(w) for w in words], devices, env, str(folder)]
  server.stdin.write(json.dumps(job) + "\n")
  server.stdin.flush()
  return Process(int(server.stdout.readline()), folder)


def fork(module: str, *words) -> subprocess.CompletedProcess:
  """Runs the command lumina_jax.<module> to its end."""
  process = start(f"lumina_jax.{module}", *words)
  code = process.wait()
  return subprocess.CompletedProcess(
    [module, *words], code, process.stdout, process.stderr
  )


@functools.cache
def _folder() -> str:
  _folder.owner = tempfile.TemporaryDirectory(prefix="zygote_")
  return _folder.owner.name


@functools.cache
def _server() -> subprocess.Popen:
  """Ends when its input does, so with this process."""
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  server = subprocess.Popen(
    [sys.executable, __file__],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": path},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  # Waiting for it counts the CPU seconds of its children.
  atexit.register(lambda: (server.stdin.close(), server.wait(10)))
  return server


def _serve() -> None:
  folders = {}

  def reap(*_):
    for pid in [*folders]:
      try:
        done, status = os.waitpid(pid, os.WNOHANG)
      except ChildProcessError:
        continue  # A signal during this handler has reaped it.
      if done:
        folder = pathlib.Path(folders.pop(pid))
        (folder / "new").write_text(str(os.waitstatus_to_exitcode(status)))
        (folder / "new").rename(folder / "code")  # whole, or not there

  signal.signal(signal.SIGCHLD, reap)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ends when pytest does.
  for line in iter(sys.stdin.readline, ""):
    job = json.loads(line)
    is_script = job[0].endswith(".py")
    for module in TRAIN if is_script else NEEDS.get(job[0], job[:1]):
      importlib.import_module(module)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child:
      folders[child] = job[-1]
    else:
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    if not child:
      return _become(*job)
    print(child, flush=True)


def _become(target, words, devices, env, folder) -> None:
  """Runs the target in this process, including its exit."""
  import jax

  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for stream, name in enumerate(("stdout", "stderr"), start=1):
    os.dup2(
      os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND), stream
    )
  os.environ.update(env)
  jax.config.update("jax_num_cpu_devices", devices)
  sys.argv = [target, *words]
  if target.endswith(".py"):
    sys.path.insert(0, os.path.dirname(target))
    runpy.run_path(target, run_name="__main__")
    return
  module = importlib.import_module(target)
  sys.modules["__main__"].__doc__ = module.__doc__  # The head of --help.
  if target == "lumina_jax.sample":  # Another name of infer.
    importlib.import_module("lumina_jax.cli").run("infer", words)
  else:
    module.main() if target == "lumina_jax.cli" else module.run()


if __name__ == "__main__":
  del sys.path[0]  # This folder, whose `configs` would hide the package's.
  _serve()
