"""Writes the loss and every gradient of a small run's first step.

Arguments: the file to write, then the mesh, e.g. "data=2 context=4", other
fields of the model, e.g. "model.sequence_split=ring", and for one of several
processes "process=1 of=2 port=12345".
"""

import json
import sys

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from support.configs import small_config

from lumina_jax.parallel.mesh import RULES, make_mesh, replicated
from lumina_jax.training import gradient
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state, state_shardings

SIZES = dict(model__width=64, model__heads=8, model__kv_heads=4)


def main(file: str, *arguments: str) -> None:
  words = dict(argument.split("=") for argument in arguments)
  if "process" in words:
    process, processes = int(words.pop("process")), int(words.pop("of"))
    where = f"localhost:{words.pop('port')}"
    jax.distributed.initialize(where, processes, process)
  changes = {
    k.replace(".", "__"): v for k, v in words.items() if k.startswith("model.")
  }
  changes |= {
    f"mesh__{axis}": int(degree)
    for axis, degree in words.items()
    if not axis.startswith("model.")
  }
  config = small_config("next", **SIZES, **changes)
  mesh = make_mesh(config.mesh)
  network, rows = config.network, config.training.batch_rows
  tx = make_optimizer(config.optimizer, 4)
  params = random(create_state(network, tx, mesh, config.seed).params)
  batch = make_batches(config, mesh).batch(0)
  placed = state_shardings(network, tx, mesh)[1].params

  def loss(params, batch):
    with nn.logical_axis_rules(RULES):
      key = jax.random.key(0)
      return gradient.flow_loss(network, params, batch, config.time, key).mean

  with jax.set_mesh(mesh):
    value, grads = jax.jit(
      jax.value_and_grad(loss),
      in_shardings=(placed, steps.batch_shardings(batch, mesh)),
      out_shardings=(replicated(mesh), placed),
    )(params, steps.place_batch(batch, mesh, rows))
  tokens = steps.place_batch(batch, mesh, rows)[0]
  shards = tokens.segments.addressable_shards
  held = sorted({shard.index[0].start or 0 for shard in shards})
  grads = multihost_utils.process_allgather(grads, tiled=True)
  paths = jax.tree_util.tree_leaves_with_path(grads)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
  if jax.process_index() == 0:
    np.savez(file, loss=float(value), **named)
  print(json.dumps({"devices": jax.device_count(), "rows": held}))
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("done")
    jax.distributed.shutdown()


def random(params):
  """Every parameter N(0, 0.1), none of them zero, the same on any mesh."""
  leaves, tree = jax.tree.flatten(params)

  def draw(i, leaf):
    host = np.random.default_rng(i).normal(0, 0.1, leaf.shape)
    host = host.astype(np.float32)
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: host[index]
    )

  return jax.tree.unflatten(tree, [draw(i, x) for i, x in enumerate(leaves)])


if __name__ == "__main__":
  main(*sys.argv[1:])
