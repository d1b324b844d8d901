"""Exercises `parallel.processes` in two processes; prints results as JSON.

Argument: how it ends, "together", "both" (both fail) or "one" (process 1
fails).
"""

import json
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding

from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import ROWS


def main(end: str) -> None:
  processes.initialize()
  processes.initialize()  # A second call does nothing.
  number = jax.process_index()
  mesh = processes.data_parallel_mesh()
  rows = np.arange(8.0).reshape(4, 2)
  x = jax.make_array_from_callback(
    rows.shape, NamedSharding(mesh, ROWS), lambda index: rows[index]
  )
  with processes.only_first_prints():
    print("only the first prints this")
  calls = []
  results = {
    "count": processes.count(),
    "first": processes.is_first(),
    "exchange": processes.exchange(f"é {number}"),
    "broadcast": processes.broadcast(7 + number),
    "local": len(x.addressable_shards),
    "rows": processes.gather({"x": x, "y": 2})["x"].tolist(),
    "unequal": error(
      lambda: processes.check_equal(f"config {number}", "config")
    ),
    "equal": error(lambda: processes.check_equal(b"the same")),
    "failed": error(lambda: processes.on_first(full)),
    "passed": error(lambda: processes.on_first(lambda: calls.append(1))),
    "calls": calls,
  }
  print(json.dumps(results), flush=True)
  if end == "together":
    time.sleep(0.5 * number)  # One comes late to the end.
    processes.finish()
    return
  if end == "both" or number == 1:
    processes.finish(3)
  processes.barrier("that process 1 never reaches")


def full() -> None:
  raise OSError("the disk is full")


def error(act) -> str:
  try:
    act()
  except (OSError, ValueError) as raised:
    return f"{type(raised).__name__}: {raised}"
  return ""


if __name__ == "__main__":
  main(*sys.argv[1:])
