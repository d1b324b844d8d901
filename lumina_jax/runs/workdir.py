"""A run's folder: who may write to it, and what can be read from it."""

from __future__ import annotations

import logging

import jax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh, SingleDeviceSharding

from lumina_jax.files import atomic, schema
from lumina_jax.model.network import Network, Params
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import shardings
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import run_encoders
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import FOLDER, read_ema
from lumina_jax.training.run_config import RunConfig

COMMITTED = "commit_success.txt"  # Orbax writes it last.


def claim(
  config: RunConfig, workdir: epath.PathLike, allow_change: bool
) -> epath.Path:
  """Makes the folder of a run, or checks that it is this run's folder.

  The config is saved by training, once it has proved to work. Of several
  processes the first one looks, and all are told.

  Raises:
    ValueError: if a run with another config has checkpoints there.
    OSError: if it cannot be written; in other processes, for either reason.
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
        "Name another --workdir, or go on there with the new values by "
        "--allow_config_change"
      )
    for line in changed:
      logging.warning("config changed, %s", line)


def has_checkpoint(folder: epath.PathLike) -> bool:
  """Whether a run has saved anything here yet."""
  saved = epath.Path(folder) / FOLDER
  found = saved.iterdir() if saved.exists() else ()
  steps = [path for path in found if path.name.isdigit()]
  if atomic.in_store(saved):  # There a step has its name from the first.
    steps = [path for path in steps if (path / COMMITTED).exists()]
  return bool(steps)


def load_pipeline(
  workdir: epath.PathLike, mesh: Mesh | None = None
) -> LuminaPipeline:
  """The averaged parameters of a run, ready to sample.

  Args:
    workdir: of the run.
    mesh: where the rules of `parallel.mesh` put them; None = all devices of all
      processes, each of which has them whole and draws its share of pictures.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint yet.
  """
  return load_step(workdir, mesh)[1]


def load_step(
  workdir: epath.PathLike, mesh: Mesh | None = None
) -> tuple[int, LuminaPipeline]:
  """Like `load_pipeline`, and the step at which the parameters were saved."""
  config = run_config.load(workdir)
  network = config.network
  mesh = mesh or processes.data_parallel_mesh()
  abstract = _abstract(network, mesh)
  found = read_ema(workdir, abstract) if has_checkpoint(workdir) else None
  if found is None:
    raise FileNotFoundError(
      f"{workdir} has a config but no complete checkpoint yet; train on "
      f"(python -m lumina_jax.train --config=... --workdir={workdir}) until "
      "the first one is written"
    )
  step, ema = found
  vae, text_encoder = run_encoders.load(config)
  return step, LuminaPipeline(
    network,
    ema,
    config.sampling,
    text_encoder=text_encoder,
    vae=vae,
    mesh=mesh,
  )


def _abstract(network: Network, mesh: Mesh | None) -> Params:
  """Shapes of the parameters and where they go; without a mesh, one device."""
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  shapes = nn.unbox(boxed)
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    where = jax.tree.map(lambda _: device, shapes)
  else:
    where = shardings(boxed, mesh)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    where,
  )
