"""The workdir of a run: claims it for a run, and loads its components."""

import logging

import jax
from etils import epath
from jax.sharding import Mesh

from lumina_jax import media
from lumina_jax.files import atomic, schema
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel import processes
from lumina_jax.parallel.placement import abstract_params
from lumina_jax.pretrained import encoders
from lumina_jax.sampling.components import Components
from lumina_jax.training import run_config
from lumina_jax.training.restore import has_checkpoint, read_ema
from lumina_jax.training.run_config import RunConfig


def claim(
  config: RunConfig, workdir: epath.PathLike, allow_change: bool
) -> epath.Path:
  """Creates the workdir of a run, or checks that it belongs to this run.

  Training saves the config once it has started.

  Args:
    config: config of the run.
    workdir: workdir of the run.
    allow_change: whether the config may differ from the one in the workdir.

  Raises:
    ValueError: if a run with another config has checkpoints there.
    OSError: if the folder cannot be written to. Of several processes, process 0
      checks; the others raise an OSError for either reason.
  """
  folder = epath.Path(workdir)
  processes.on_first(lambda: _claim(config, folder, allow_change))
  return folder


def _claim(config: RunConfig, folder: epath.Path, allow_change: bool) -> None:
  atomic.make_folder(folder)
  if (folder / run_config.FILE).exists() and has_checkpoint(folder):
    changed = schema.differences(run_config.load(folder), config)
    if changed and not allow_change:
      lines = "\n  ".join(changed)
      raise ValueError(
        f"{folder} holds a run with another config:\n  {lines}\n"
        "Name another --workdir, or continue there with the new values by "
        "--allow_config_change"
      )
    for line in changed:
      logging.warning("config changed, %s", line)


def load(workdir: epath.PathLike, mesh: Mesh | None = None) -> Components:
  """The components of a run, with EMA weights of its newest checkpoint.

  Args:
    workdir: workdir of the run.
    mesh: devices that weights are sharded over; None: every device of every
      process holds all weights, and the devices share the samples of a call.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint.
  """
  return load_step(workdir, mesh)[1]


def load_step(
  workdir: epath.PathLike, mesh: Mesh | None = None
) -> tuple[int, Components]:
  """Like `load`, with the step of the checkpoint."""
  config = run_config.load(workdir)
  mesh = mesh or processes.data_parallel_mesh()
  boxed = jax.eval_shape(config.network.init, jax.random.key(0))
  abstract = abstract_params(boxed, mesh)
  found = read_ema(workdir, abstract) if has_checkpoint(workdir) else None
  if found is None:
    raise FileNotFoundError(
      f"{workdir} has a config but no complete checkpoint yet; train until the "
      "first one is written (python -m lumina_jax.train --config=... "
      f"--workdir={workdir})"
    )
  step, ema = found
  medium = media.find(config.medium)
  loaded = encoders.of_run(config.encoders, medium, config.network)
  return step, config.components(Offloadable.pinned(ema), loaded, mesh)
