"""Training runs that tests share."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from support.configs import small_flags
from support.zygote import fork


class Run(NamedTuple):
  """A finished run of the command.

  Attributes:
    workdir: its workdir, with checkpoints at steps 2, 4 and 6.
    printed: what it printed.
  """

  workdir: pathlib.Path
  printed: str


def train_words(workdir, **changes) -> list[str]:
  """The flags that train the small digits."""
  flags = small_flags(**changes)
  return ["--config=configs/digits.py", f"--workdir={workdir}", *flags]


def run(module: str, *words) -> str:
  """Runs a command that must succeed in a process; returns what it printed."""
  done = fork(module, *words)
  assert done.returncode == 0, done.stderr
  return done.stdout


def once_per_session(
  folder: pathlib.Path, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  """A folder that one worker makes and all workers of a session use.

  Args:
    folder: temporary folder of this worker, below that of the session.
    name: name of the folder to make.
    make: fills the folder.
  """
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent
  path, done = folder / name, folder / f"{name}.done"
  with (folder / f"{name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      make(path)
      done.touch()
  return path


def share_programs(monkeypatch) -> None:
  """Lets runs of one process share what they compile and initialise.

  Tracing and compiling take most of the time of a small run.
  """
  import jax
  import numpy as np

  from lumina_jax import train
  from lumina_jax.training import step as steps

  steps_by_key, states_by_key = {}, {}
  make_optimizer = functools.cache(train.make_optimizer)
  create_state = train.create_state

  def create_once(network, tx, mesh, seed, params=None):
    key = network, tx, mesh, seed
    if params is not None:
      return create_state(*key, params)
    if key not in states_by_key:
      state = create_state(*key)
      shardings = jax.tree.map(lambda x: x.sharding, state)
      states_by_key[key] = jax.tree.map(np.array, state), shardings
    values, shardings = states_by_key[key]
    # Steps donate their state: each run needs arrays of its own.
    return jax.device_put(jax.tree.map(np.copy, values), shardings)

  def compile_once(config, tx, state, batch, mesh):
    plan = dataclasses.replace(
      config.training,
      log_every=1,
      checkpoint_every=1,
      keep_checkpoints=1,
      sample_every=1,
      max_skipped=1,
    )
    same = dataclasses.replace(
      config, training=plan, data=config.data.budget, init_from=""
    )
    key = same, tx, mesh
    if key not in steps_by_key:
      step = steps.compile_train_step(config, tx, state, batch, mesh)
      steps_by_key[key] = step
    return steps_by_key[key]

  monkeypatch.setattr(train, "make_optimizer", make_optimizer)
  monkeypatch.setattr(train, "create_state", create_once)
  monkeypatch.setattr(train, "compile_train_step", compile_once)
