"""The workdir of a run: claims it for a run, and loads its components."""

from __future__ import annotations

import logging

import jax
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh, SingleDeviceSharding

from lumina_jax import media
from lumina_jax.files import atomic, schema
from lumina_jax.model.network import Network, Params
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import shardings
from lumina_jax.pretrained import encoders
from lumina_jax.sampling.components import Components
from lumina_jax.training import run_config
from lumina_jax.training.restore import has_checkpoint, read_ema
from lumina_jax.training.run_config import RunConfig

NO_ENCODERS = encoders.Encoders()


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
  abstract = _abstract(config.network, mesh)
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
  components = components_of(config, Offloadable.pinned(ema), loaded, mesh)
  return step, components


def components_of(
  config: RunConfig,
  weights: Offloadable,
  loaded: encoders.Encoders = NO_ENCODERS,
  mesh: Mesh | None = None,
) -> Components:
  """The components of a run, from weights in memory.

  Args:
    config: config of the run.
    weights: weights of its network.
    loaded: frozen networks of the run.
    mesh: devices to sample on; None: the devices of the weights.
  """
  return Components(
    media.find(config.medium),
    config.network,
    weights,
    config.sampling,
    config.sizes,
    text_encoder=loaded.text,
    codec=loaded.codec,
    mesh=mesh,
  )


def _abstract(network: Network, mesh: Mesh | None) -> Params:
  """Shapes and shardings of the parameters; without a mesh, on one device."""
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  shapes = nn.unbox(boxed)
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda _: device, shapes)
  else:
    placed = shardings(boxed, mesh)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    placed,
  )
