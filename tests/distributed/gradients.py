"""Writes the loss and every gradient of a small run's first step.

Arguments: a folder, then for each file to write there a mesh and fields of the
model, e.g. "data=1,context=8 sequence_split=ring". Meshes take the first
devices; in several processes there is one mesh of all devices.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from support.configs import small_config

from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import RULES, make_mesh, parse_mesh, replicated
from lumina_jax.training import gradient
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state, state_shardings

SIZES = dict(model__width=64, model__heads=8, model__kv_heads=4)


def main(folder: str, *runs: str) -> None:
  processes.initialize()
  found = [
    write_gradients(pathlib.Path(folder) / f"{number}.npz", *text.split())
    for number, text in enumerate(runs)
  ]
  print(json.dumps(found), flush=True)
  processes.finish()


def write_gradients(file: pathlib.Path, degrees: str, *fields: str) -> dict:
  changes = dict(field.split("=") for field in fields)
  changes = {f"model__{name}": value for name, value in changes.items()}
  config = small_config("next", **SIZES, **changes)
  cfg = parse_mesh(degrees)
  size = cfg.data * cfg.fsdp * cfg.context * cfg.tensor
  mesh = make_mesh(cfg, jax.devices()[:size])
  network, rows = config.network, config.training.batch_rows
  tx = make_optimizer(config.optimizer, 4)
  _, placed = state_shardings(network, tx, mesh)
  params = random(create_state(network, tx, mesh, config.seed).params)
  batch = make_batches(config, mesh).batch(0)

  def loss(params, batch):
    with nn.logical_axis_rules(RULES):
      key = jax.random.key(0)
      return gradient.flow_loss(network, params, batch, config.time, key).mean

  inputs = steps.place_batch(batch, mesh, rows)
  with jax.set_mesh(mesh):
    value, grads = jax.jit(
      jax.value_and_grad(loss),
      in_shardings=(placed.params, steps.batch_shardings(batch, mesh)),
      out_shardings=(replicated(mesh), placed.params),
    )(params, inputs)
  shards = inputs[0].segments.addressable_shards
  grads = multihost_utils.process_allgather(grads, tiled=True)
  paths = jax.tree_util.tree_leaves_with_path(grads)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
  if processes.is_first():
    np.savez(file, loss=float(value), **named)
  starts = sorted({shard.index[0].start or 0 for shard in shards})
  return {"devices": mesh.size, "rows": starts}


def random(params):
  """Every parameter N(0, 0.1), none of them zero, the same on any mesh."""
  leaves, tree = jax.tree.flatten(params)

  def normal(i, leaf):
    host = np.random.default_rng(i).normal(0, 0.1, leaf.shape)
    host = host.astype(np.float32)
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: host[index]
    )

  return jax.tree.unflatten(tree, [normal(i, x) for i, x in enumerate(leaves)])


if __name__ == "__main__":
  main(*sys.argv[1:])
