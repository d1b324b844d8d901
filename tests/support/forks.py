"""Commands as processes of their own, without what importing costs each.

A server imports each command once, starts no JAX, and forks: a child has
arguments, streams and an exit code like `python -m lumina_jax.train`, but
starts in no time.
"""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
ALIASES = {"sample": "infer"}


def fork(module: str, *words) -> subprocess.CompletedProcess:
  """Runs lumina_jax.<module> with those words; text is what it printed."""
  server = _server()
  with tempfile.TemporaryDirectory() as folder:
    printed = [os.path.join(folder, name) for name in ("stdout", "stderr")]
    job = [module, [str(word) for word in words], printed]
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    texts = [pathlib.Path(path).read_text() for path in printed]
  return subprocess.CompletedProcess(job[:2], code, *texts)


@functools.cache
def _server() -> subprocess.Popen:
  """Ends when its input does, so with this process."""
  return subprocess.Popen(
    [sys.executable, __file__],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def _serve() -> None:
  for line in iter(sys.stdin.readline, ""):
    job = json.loads(line)
    for module in (job[0], ALIASES.get(job[0])):
      if module:
        importlib.import_module(f"lumina_jax.{module}")
    child = os.fork()
    if not child:
      return _become(*job)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def _become(module: str, words: list[str], printed: list[str]) -> None:
  """Is that command from now on, its exit included."""
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for stream, path in enumerate(printed, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
  found = importlib.import_module(f"lumina_jax.{module}")
  sys.argv = [found.__file__, *words]
  sys.modules["__main__"].__doc__ = found.__doc__  # What --help begins with.
  if module in ALIASES:
    importlib.import_module("lumina_jax.cli").run(ALIASES[module], words)
  else:
    found.main() if module == "cli" else found.run()


if __name__ == "__main__":
  sys.path.pop(0)  # This folder, whose configs.py hides those of the project.
  _serve()
