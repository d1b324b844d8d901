"""Runs a command in one of several processes.

Arguments: its module, its flags, and "process=1 of=2 port=12345".
"""

import importlib
import os
import sys

from lumina_jax.parallel import cluster


def main(module: str, *words: str) -> None:
  said = dict(word.split("=") for word in words[-3:])
  os.environ |= {
    cluster.COORDINATOR: f"localhost:{said['port']}",
    cluster.COUNT: said["of"],
    cluster.NUMBER: said["process"],
  }
  sys.argv = [module, *words[:-3]]
  importlib.import_module(module).run()


if __name__ == "__main__":
  main(*sys.argv[1:])
