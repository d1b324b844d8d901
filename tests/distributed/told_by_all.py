"""What processes tell each other; prints as JSON what this one was told.

Arguments: how it ends, "all", "alike" (all fail) or "one" (process 1 fails),
then "process=1 of=2 port=12345".
"""

import json
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding

from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import ROWS


def main(end: str, *words: str) -> None:
  said = dict(word.split("=") for word in words)
  number = int(said["process"])
  processes.start(f"localhost:{said['port']}", int(said["of"]), number)
  processes.start()  # Once is enough; again it does nothing.
  mesh = processes.everywhere()
  rows = np.arange(8.0).reshape(4, 2)
  x = jax.make_array_from_callback(
    rows.shape, NamedSharding(mesh, ROWS), lambda index: rows[index]
  )
  with processes.one_voice():
    print("only one says this")
  processes.say("and this", number)
  done = []
  found = {
    "count": processes.count(),
    "first": processes.is_first(),
    "said": processes.exchange(f"é {number}"),
    "any": [processes.any_of(number == 1), processes.any_of(False)],
    "first_says": processes.first_says(7 + number),
    "local": len(x.addressable_shards),
    "rows": processes.gather({"x": x, "y": 2})["x"].tolist(),
    "unequal": fault(lambda: processes.agree(f"config {number}", "config")),
    "equal": fault(lambda: processes.agree(b"the same")),
    "failed": fault(lambda: processes.on_first(full)),
    "passed": fault(lambda: processes.on_first(lambda: done.append(1))),
    "done": done,
  }
  print(json.dumps(found), flush=True)
  if end == "all":
    time.sleep(number)  # One comes late to the end.
    processes.finish()
    return
  if end == "alike" or number == 1:
    processes.finish(3)
  processes.barrier("that process 1 never comes to")


def full() -> None:
  raise OSError("the disk is full")


def fault(act) -> str:
  try:
    act()
  except (OSError, ValueError) as error:
    return f"{type(error).__name__}: {error}"
  return ""


if __name__ == "__main__":
  main(*sys.argv[1:])
