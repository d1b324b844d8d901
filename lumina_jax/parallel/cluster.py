"""Which processes make up a run: told by flags and environment, or found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax._src.clusters import GceTpuCluster, GkeTpuCluster

# By the environment, where no flags say it.
COORDINATOR = "LUMINA_COORDINATOR"
COUNT = "LUMINA_NUM_PROCESSES"
NUMBER = "LUMINA_PROCESS_ID"

SLICES = GkeTpuCluster, GceTpuCluster


class Place(NamedTuple):
  """This process among all.

  Attributes:
    coordinator: host and port at which process 0 is found.
    count: of processes.
    number: of this one, from 0.
    devices: those of the host's accelerators that are its own; None = all.
  """

  coordinator: str
  count: int
  number: int
  devices: list[int] | None = None


def told(
  coordinator: str, count: int, number: int, environ: Mapping[str, str]
) -> Place | None:
  """What arguments and the environment say; None = nothing.

  Raises:
    ValueError: if that is not all, or no place, or they contradict each other.
  """
  flags = {
    COORDINATOR: coordinator or None,
    COUNT: count or None,
    NUMBER: None if number == -1 else number,
  }
  values = {COORDINATOR: environ.get(COORDINATOR) or None}
  for name in (COUNT, NUMBER):
    text = environ.get(name) or None
    if text and not re.fullmatch(r"\d+", text):
      raise ValueError(f"{name}={text!r}: must be a number")
    values[name] = int(text) if text else None
  for name, flag in flags.items():
    if None not in (flag, values[name]) and flag != values[name]:
      raise ValueError(
        f"{flag!r} was asked for, but {name}={values[name]!r}; unset one"
      )
    values[name] = values[name] if flag is None else flag
  said = {name: x for name, x in values.items() if x is not None}
  if not said:
    return None
  if values[COUNT] == 1 and values[NUMBER] in (None, 0):
    return Place(coordinator, 1, 0)
  if missing := values.keys() - said.keys():
    raise ValueError(
      f"of several processes, {_listed(said)} is given, but not "
      f"{' and '.join(sorted(missing))}: set all three or none, by flags or by "
      "the environment"
    )
  where, count, number = values.values()
  if not re.fullmatch(r".+:\d+", where):
    raise ValueError(f"{COORDINATOR}={where!r}: write host:port of process 0")
  if not 0 <= number < count:
    raise ValueError(
      f"{_listed(said)}: processes count from 0 to {max(count, 1) - 1}"
    )
  return Place(where, count, number)


def _listed(said: Mapping[str, Any]) -> str:
  return " ".join(f"{name}={value}" for name, value in said.items())


def of_slurm(environ: Mapping[str, str]) -> Place | None:
  """The place of a SLURM task; None outside of steps of several tasks.

  One task of a host has all its accelerators; several have one each, unless
  SLURM itself shows each of them one only.
  """
  # Of the step: a shell on the allocation knows of tasks that do not run.
  count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
  if count == 1:
    return None
  # host[003,007-009],other4 begins with host003.
  first = re.match(r"([^\[,]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
  port = 61_440 + int(environ["SLURM_JOB_ID"]) % 4096  # Another job, another.
  shared = count > int(environ["SLURM_STEP_NUM_NODES"])
  one = re.fullmatch("[^,]+", environ.get("CUDA_VISIBLE_DEVICES", ""))
  return Place(
    f"{first[1]}{first[2] or ''}:{port}",
    count,
    int(environ["SLURM_PROCID"]),
    [int(environ["SLURM_LOCALID"])] if shared and not one else None,
  )


def hosts_of_slice(environ: Mapping[str, str]) -> int:
  """Hosts that hold the TPU of this one; 1 where there is none to be used.

  Only a TPU host that no environment describes asks Google's metadata server.

  Raises:
    OSError: if that does not answer.
  """
  # Where there are chips and nobody says otherwise, JAX itself sets this.
  if "tpu" not in (jax.config.jax_platforms or "").split(","):
    return 1
  if environ.get("TPU_PROCESS_BOUNDS"):  # Somebody has cut the host up.
    return 1
  try:
    kinds = (kind for kind in SLICES if kind.is_env_present())
    return max((kind.get_process_count() for kind in kinds), default=1)
  except OSError as error:
    raise OSError(
      f"cannot learn whether this TPU host is one of several ({error}); if it "
      f"is alone, set {COUNT}=1, and else {COORDINATOR}, {COUNT} and {NUMBER}"
    ) from error
