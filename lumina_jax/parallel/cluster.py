"""Finds the processes of a run: flags, environment, SLURM, TPU slices."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax._src.clusters import GceTpuCluster, GkeTpuCluster

# Environment variables that stand in for flags.
COORDINATOR = "LUMINA_COORDINATOR"
NUM_PROCESSES = "LUMINA_NUM_PROCESSES"
PROCESS_ID = "LUMINA_PROCESS_ID"

TPU_CLUSTERS = GkeTpuCluster, GceTpuCluster
# SLURM jobs take ports from the ephemeral range, by job id, as in JAX.
SLURM_PORTS = 61_440, 4096  # first, count


class Cluster(NamedTuple):
  """All processes and this one, as arguments of `jax.distributed.initialize`.

  Attributes:
    coordinator_address: host:port of process 0.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    local_device_ids: accelerators of the host that this process uses; None =
      all.
  """

  coordinator_address: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None = None


def from_flags(
  coordinator: str,
  num_processes: int,
  process_id: int,
  environ: Mapping[str, str],
) -> Cluster | None:
  """The cluster that flags and environment variables describe; None = none.

  Args:
    coordinator: host:port of process 0; "" = not given.
    num_processes: number of processes; 0 = not given.
    process_id: number of this process; -1 = not given.
    environ: environment variables, read where a flag is not given.

  Raises:
    ValueError: if values are missing, malformed or contradictory.
  """
  flags = {
    COORDINATOR: coordinator or None,
    NUM_PROCESSES: num_processes or None,
    PROCESS_ID: None if process_id == -1 else process_id,
  }
  values = {name: _merge(name, flag, environ) for name, flag in flags.items()}
  given = {name: x for name, x in values.items() if x is not None}
  if not given:
    return None
  if values[NUM_PROCESSES] == 1 and values[PROCESS_ID] in (None, 0):
    return Cluster(coordinator, 1, 0)
  if missing := values.keys() - given.keys():
    raise ValueError(
      f"of several processes, {_format(given)} is given, but not "
      f"{' and '.join(sorted(missing))}: set all three or none, by flags or by "
      "the environment"
    )
  address, count, number = values.values()
  if not re.fullmatch(r".+:\d+", address):
    raise ValueError(f"{COORDINATOR}={address!r}: write host:port of process 0")
  if not 0 <= number < count:
    raise ValueError(
      f"{_format(given)}: processes count from 0 to {max(count, 1) - 1}"
    )
  return Cluster(address, count, number)


def _merge(name: str, flag: Any, environ: Mapping[str, str]) -> Any:
  """The value of a flag or of its environment variable; None = not given."""
  value = environ.get(name) or None
  if value and name != COORDINATOR:
    if not re.fullmatch(r"\d+", value):
      raise ValueError(f"{name}={value!r}: must be a number")
    value = int(value)
  if None not in (flag, value) and flag != value:
    raise ValueError(f"the flag says {flag!r}, but {name}={value!r}; unset one")
  return value if flag is None else flag


def _format(values: Mapping[str, Any]) -> str:
  return " ".join(f"{name}={value}" for name, value in values.items())


def from_slurm(environ: Mapping[str, str]) -> Cluster | None:
  """The cluster of a SLURM step; None outside of steps of several tasks.

  A single task per host uses all its accelerators. Several tasks per host use
  one each, unless SLURM already shows each task one only.
  """
  # Variables of the step: in a shell on the allocation, those of the job count
  # tasks that do not run.
  count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
  if count == 1:
    return None
  # host[003,007-009],other4 starts with host003.
  first = re.match(r"([^\[,]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
  port = SLURM_PORTS[0] + int(environ["SLURM_JOB_ID"]) % SLURM_PORTS[1]
  shared = count > int(environ["SLURM_STEP_NUM_NODES"])
  one = re.fullmatch("[^,]+", environ.get("CUDA_VISIBLE_DEVICES", ""))
  return Cluster(
    f"{first[1]}{first[2] or ''}:{port}",
    count,
    int(environ["SLURM_PROCID"]),
    [int(environ["SLURM_LOCALID"])] if shared and not one else None,
  )


def slice_hosts(environ: Mapping[str, str]) -> int:
  """The number of hosts of the TPU slice; 1 without a TPU.

  Queries Google's metadata server only on a TPU host whose environment does not
  describe the slice.

  Raises:
    OSError: if the metadata server does not answer.
  """
  # JAX sets this by itself where it finds TPU chips.
  if "tpu" not in (jax.config.jax_platforms or "").split(","):
    return 1
  if environ.get("TPU_PROCESS_BOUNDS"):  # The user has partitioned the host.
    return 1
  try:
    present = (c for c in TPU_CLUSTERS if c.is_env_present())
    return max((c.get_process_count() for c in present), default=1)
  except OSError as error:
    raise OSError(
      f"cannot find out whether this TPU host is one of several ({error}); if "
      f"it is alone, set {NUM_PROCESSES}=1, else {COORDINATOR}, "
      f"{NUM_PROCESSES} and {PROCESS_ID}"
    ) from error
