"""Several processes as one program: how they start, communicate and end.

All processes run the same commands in the same order, and all must make each
call below. With one process, these calls return at once.
"""

import contextlib
import itertools
import os
import pathlib
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client has barriers with a timeout
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lumina_jax.parallel import cluster
from lumina_jax.parallel.mesh import MeshConfig, make_mesh

# Timeouts in seconds: to connect, until a silent process counts as dead, for a
# slow process at a barrier, and for other processes that fail at the same time.
CONNECT, HEARTBEAT, BARRIER, FAILURE = 300, 30, 24 * 3600, 5

NO_MESH = Mesh(np.empty((), object), ())

_calls = itertools.count()  # Equal in all processes, so that keys match.


def initialize(
  coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> None:
  """Connects to the other processes, if any, before a backend starts.

  Reads the arguments, else LUMINA_COORDINATOR, LUMINA_NUM_PROCESSES and
  LUMINA_PROCESS_ID, else SLURM's variables, else the hosts of a TPU slice.
  LUMINA_NUM_PROCESSES=1 skips the search.

  Args:
    coordinator: host:port of process 0; "" = not given.
    num_processes: number of processes; 0 = not given.
    process_id: number of this process; -1 = not given.

  Raises:
    ValueError: if values are missing, malformed or contradictory.
    OSError: if a TPU host cannot find out whether it is alone.
    RuntimeError: if a backend runs already, or the others do not connect.
  """
  if distributed.global_state.client is not None:
    return
  timeouts = dict(
    initialization_timeout=CONNECT, heartbeat_timeout_seconds=HEARTBEAT
  )
  found = cluster.from_flags(coordinator, num_processes, process_id, os.environ)
  found = found or cluster.from_slurm(os.environ)
  if found is None:
    if cluster.slice_hosts(os.environ) > 1:
      jax.distributed.initialize(**timeouts)
  elif found.num_processes > 1:
    # All that JAX would detect is given.
    jax.distributed.initialize(
      *found, cluster_detection_method="deactivate", **timeouts
    )


def count() -> int:
  """The number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this is process 0, the only one that writes and prints."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process arrives.

  Raises:
    jax.errors.JaxRuntimeError: if a process has died or does not arrive.
  """
  if count() > 1:
    _client().wait_at_barrier(f"lumina/{next(_calls)}/{name}", BARRIER * 1000)


def exchange(text: str) -> list[str]:
  """Gathers a text from each process, in order, on all of them.

  Uses no device and takes milliseconds: too slow for every step.

  Raises:
    jax.errors.JaxRuntimeError: as in `barrier`.
  """
  if count() == 1:
    return [text]
  client, folder = _client(), f"lumina/{next(_calls)}"
  client.key_value_set(f"{folder}/{jax.process_index()}", text)
  barrier("exchange")
  found = dict(client.key_value_dir_get(folder))
  return [found[f"{folder}/{number}"] for number in range(count())]


def check_equal(value: str | bytes | int, name: str = "value") -> None:
  """Checks that a value is the same in all processes.

  Raises:
    ValueError: in all of them, if it is not; names two values that differ.
  """
  values = exchange(repr(value))
  for number, other in enumerate(values):
    if other != values[0]:
      raise ValueError(
        f"the {name} of process 0 is {values[0]}, but that of process {number} "
        f"{other}; start all with the same flags, files and version"
      )


def broadcast(value: int) -> int:
  """The value of process 0."""
  return int(exchange(str(int(value)))[0])


def on_first(act: Callable[[], Any]) -> None:
  """Calls a function in process 0 only, while the others wait.

  Raises:
    OSError: in the other processes, with the message of any error in process 0.
    Exception: in process 0, as raised.
  """
  error = None
  if is_first():
    try:
      act()
    except Exception as raised:
      error = raised
  message = exchange("" if error is None else f"{error}" or repr(error))[0]
  if error is not None:
    raise error
  if message:
    raise OSError(f"process 0: {message}")


def gather(tree: Any) -> Any:
  """Global arrays as whole numpy arrays, on every process.

  Gathers leaves one by one, so that a device holds one whole array at most.
  """

  def gather_leaf(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(gather_leaf, tree)


def data_parallel_mesh() -> Mesh | None:
  """A mesh that shards rows over all devices; None for a single device."""
  if jax.device_count() == 1:
    return None
  return make_mesh(MeshConfig(dcn_data=-1))


def use_mesh_of(params: Any) -> contextlib.AbstractContextManager:
  """Sets the mesh of these parameters, in place of the active mesh."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  return jax.set_mesh(getattr(sharding, "mesh", NO_MESH))


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
  """Discards the standard output of all processes but the first."""
  if is_first():
    yield
    return
  with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
    yield


def exit_on_sigterm() -> None:
  """Lets SIGTERM end this process at once.

  With several processes, JAX keeps SIGTERM as a notice for programs that save
  before they stop.
  """
  if count() > 1:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def finish(code: int = 0) -> None:
  """Ends a command: returns on success, exits otherwise.

  All processes leave together. A failing process waits a few seconds for others
  with the same error and then exits without cleanup, since the others may be
  inside a program that it takes part in.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  client = distributed.global_state.client
  if client is None:
    if code:
      sys.exit(code)
    return
  try:
    timeout = FAILURE if code else BARRIER
    client.wait_at_barrier("lumina/end", timeout * 1000)
    jax.distributed.shutdown()
  except Exception as error:  # Dead processes raise many types.
    if not code:
      text = str(error).splitlines()[0]
      print(f"\nerror: another process has failed: {text}", file=sys.stderr)
      sys.stderr.flush()
      os._exit(1)
  if code:
    os._exit(code)


def peak_memory() -> int:
  """Peak memory of this process on the host, in bytes."""
  status = pathlib.Path("/proc/self/status")
  text = status.read_text() if status.exists() else ""
  # On Linux, rusage includes the memory of the parent.
  if found := re.search(r"VmHWM:\s*(\d+) kB", text):
    return int(found[1]) * 1024
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _client() -> Any:
  """The client of the coordination service.

  Raises:
    RuntimeError: if `initialize` was not called.
  """
  client = distributed.global_state.client
  if client is None:
    raise RuntimeError(
      f"{count()} processes that are not connected: call processes.initialize "
      "first"
    )
  return client
