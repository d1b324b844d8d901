"""Several processes as one program: how they find each other, agree and end.

Every process runs the same commands in the same order; what is asked of all of
them here, each has to call. In one process it costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # Its client: barriers that can run out.
from jax.sharding import Mesh

from lumina_jax.parallel import cluster
from lumina_jax.parallel.mesh import MeshConfig, make_mesh, replicated

# Seconds: to find each other, until silence counts as death, to wait for one
# that is alive but slow, and for others that fail at the same time.
JOIN, SILENCE, WAIT, FAREWELL = 300, 30, 24 * 3600, 5

NOWHERE = Mesh(np.empty((), object), ())

_turn = itertools.count()  # Alike in all processes, so that names match.


def start(coordinator: str = "", count: int = 0, number: int = -1) -> None:
  """Joins the other processes, if there are any; before any backend starts.

  They are told of by the arguments, or by LUMINA_COORDINATOR,
  LUMINA_NUM_PROCESSES and LUMINA_PROCESS_ID, or found: the tasks of a SLURM
  step, the hosts of a TPU slice. LUMINA_NUM_PROCESSES=1 looks for none.

  Args:
    coordinator: host and port of process 0; "" = not given.
    count: of processes; 0 = not given.
    number: of this process; -1 = not given.

  Raises:
    ValueError: if the others are told of in part, or in contradiction.
    OSError: if a TPU host cannot learn whether it is alone.
    RuntimeError: if a backend runs already, or the others do not come.
  """
  if distributed.global_state.client is not None:
    return
  times = dict(initialization_timeout=JOIN, heartbeat_timeout_seconds=SILENCE)
  place = cluster.told(coordinator, count, number, os.environ)
  place = place or cluster.of_slurm(os.environ)
  if place is None:
    if cluster.hosts_of_slice(os.environ) > 1:
      jax.distributed.initialize(**times)
  elif place.count > 1:
    jax.distributed.initialize(
      place.coordinator,
      place.count,
      place.number,
      place.devices,
      cluster_detection_method="deactivate",  # All that it finds is given.
      **times,
    )


def count() -> int:
  return jax.process_count()


def is_first() -> bool:
  """Whether this is process 0, which alone writes and speaks."""
  return jax.process_index() == 0


def say(*text: Any) -> None:
  """Prints, once for all processes."""
  if is_first():
    print(*text, flush=True)


def barrier(name: str) -> None:
  """Waits until every process is here.

  Raises:
    jax.errors.JaxRuntimeError: if one has died, or does not come.
  """
  if count() > 1:
    _client().wait_at_barrier(f"lumina/{next(_turn)}/{name}", WAIT * 1000)


def exchange(text: str) -> list[str]:
  """What each process says, in their order, for all to know.

  Takes milliseconds and no device: nothing for every step.

  Raises:
    jax.errors.JaxRuntimeError: as in `barrier`.
  """
  if count() == 1:
    return [text]
  client, folder = _client(), f"lumina/{next(_turn)}"
  client.key_value_set(f"{folder}/{jax.process_index()}", text)
  barrier("exchange")
  found = dict(client.key_value_dir_get(folder))
  return [found[f"{folder}/{number}"] for number in range(count())]


def agree(value: str | bytes | int, what: str = "value") -> None:
  """Checks that a value is the same in all processes.

  Raises:
    ValueError: in all of them, if it is not; names two that differ.
  """
  said = exchange(repr(value))
  for number, other in enumerate(said):
    if other != said[0]:
      raise ValueError(
        f"the {what} of process 0 is {said[0]}, but that of process {number} "
        f"{other}; start all with the same flags, files and version"
      )


def any_of(flag: bool) -> bool:
  """Whether it is true in any process."""
  return "1" in exchange(str(int(flag)))


def first_says(value: int) -> int:
  """The value of process 0."""
  return int(exchange(str(int(value)))[0])


def on_first(act: Callable[[], Any]) -> None:
  """Does something in process 0 only, while the others wait.

  Raises:
    OSError: in the others, with what was raised there, as are all kinds.
    Exception: there, whatever was raised.
  """
  error = None
  if is_first():
    try:
      act()
    except Exception as raised:
      error = raised
  failed = exchange("" if error is None else f"{error}" or repr(error))[0]
  if error is not None:
    raise error
  if failed:
    raise OSError(f"process 0: {failed}")


def gather(tree: Any) -> Any:
  """Arrays that lie on devices of several processes, whole, as numpy.

  One after the other, so that no device holds more than one of them whole.
  """

  def whole(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      if not x.is_fully_replicated:
        x = jax.jit(_same, out_shardings=replicated(x.sharding.mesh))(x)
      x = x.addressable_data(0)
    return np.asarray(x)

  return jax.tree.map(whole, tree)


def everywhere() -> Mesh | None:
  """All devices of all processes, for rows; None if there is one device."""
  if jax.device_count() == 1:
    return None
  return make_mesh(MeshConfig(dcn_data=-1))


def devices_of(params: Any) -> contextlib.AbstractContextManager:
  """Within it, programs run where parameters lie, whatever mesh is in force."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  return jax.set_mesh(getattr(sharding, "mesh", NOWHERE))


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
  """Within it, what any process but the first prints goes nowhere."""
  if is_first():
    yield
    return
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    yield


def end_on_sigterm() -> None:
  """Has SIGTERM end this process at once, as it does where there is but one.

  Among several, JAX keeps it as a notice for programs that save and stop.
  """
  if count() > 1:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _same(x: jax.Array) -> jax.Array:
  return x


def finish(code: int = 0) -> None:
  """Ends a command: returns on success, exits otherwise.

  All leave together. One that fails waits a moment for others with the same
  fault, and then ends hard: as the others are in the middle of a program that
  it takes part in, nothing could be taken down in order.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  client = distributed.global_state.client
  if client is None:
    if code:
      sys.exit(code)
    return
  try:
    wait = FAREWELL if code else WAIT
    client.wait_at_barrier("lumina/end", wait * 1000)
    jax.distributed.shutdown()
  except Exception as error:  # Whatever the runtime says of the dead.
    if not code:
      text = str(error).splitlines()[0]
      print(f"\nerror: another process has failed: {text}", file=sys.stderr)
      sys.stderr.flush()
      os._exit(1)
  if code:
    os._exit(code)


def _client() -> Any:
  """Of the service of process 0.

  Raises:
    RuntimeError: if `start` was not called.
  """
  client = distributed.global_state.client
  if client is None:
    raise RuntimeError(
      f"{count()} processes that have not joined: call processes.start first"
    )
  return client
