"""A run's folder: who may write to it, and what can be read from it."""

from __future__ import annotations

import logging

import jax
from etils import epath

from lumina_jax import config as configs
from lumina_jax.config import RunConfig
from lumina_jax.parallel import mesh as meshes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training.checkpoint import FOLDER, Checkpoints


def claim(
  config: RunConfig, workdir: epath.PathLike, allow_change: bool
) -> epath.Path:
  """Makes the folder of a run, or checks that it is this run's folder.

  Raises:
    ValueError: if a run with another config was started there.
    OSError: if it cannot be written.
  """
  folder = epath.Path(workdir)
  make_folder(folder)
  if (folder / configs.FILE).exists():
    changed = configs.differences(configs.load(folder), config)
    if changed and not allow_change:
      lines = "\n  ".join(changed)
      raise ValueError(
        f"{folder} holds a run with another config:\n  {lines}\n"
        "Name another --workdir, or go on there with the new values by "
        "--allow_config_change"
      )
    for line in changed:
      logging.warning("config changed, %s", line)
  configs.save(config, folder)
  return folder


def make_folder(folder: epath.Path) -> None:
  """Makes a folder and tries it.

  Raises:
    OSError: naming the folder, if it cannot be written to.
  """
  trial = folder / ".write_test"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    trial.write_text("")
    trial.unlink()
  except OSError as error:
    raise OSError(
      f"cannot write to {folder}: {error.strerror or error}. Name another "
      "folder, or make this one writable"
    ) from error


def load_pipeline(workdir: epath.PathLike) -> LuminaPipeline:
  """The averaged parameters of a run, ready to sample, on the local devices.

  Raises:
    FileNotFoundError: if there is no run or no checkpoint yet.
  """
  config = configs.load(workdir)
  if not (epath.Path(workdir) / FOLDER).exists():
    raise _no_checkpoint(workdir)
  network = config.network
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices())
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=meshes.replicated(mesh)
    ),
    network.shapes(),
  )
  checkpoints = Checkpoints(workdir, config.training.keep_checkpoints)
  try:
    ema = checkpoints.restore_ema(abstract)
  finally:
    checkpoints.close()
  if ema is None:
    raise _no_checkpoint(workdir)
  return LuminaPipeline(network, ema, config.sampling)


def _no_checkpoint(workdir: epath.PathLike) -> FileNotFoundError:
  return FileNotFoundError(
    f"{workdir} has a config but no complete checkpoint yet; train on "
    f"(python -m lumina_jax.train --config=... --workdir={workdir}) until the "
    "first one is written"
  )
