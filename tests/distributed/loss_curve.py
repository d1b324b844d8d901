"""Prints, as JSON, the losses and shardings of a small run on several meshes.

Arguments: meshes, e.g. "data=2,fsdp=2", and "experts" to route feed-forwards.
"""

import json
import sys

import jax
from support.configs import small_config

from lumina_jax.parallel.mesh import make_mesh, parse_mesh
from lumina_jax.parallel.sharding_table import sharding_table, tree_bytes
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state

STEPS = 4


def main(*words: str) -> None:
  changes = {}
  if "experts" in words:
    changes = dict(model__experts=4, model__routing=("time", "token"))
  config = small_config("next", **changes)
  meshes = [word for word in words if word != "experts"]
  print(json.dumps([train(config, mesh) for mesh in meshes]))


def train(config, degrees: str) -> dict:
  cfg = parse_mesh(degrees)
  size = cfg.data * cfg.fsdp * cfg.context * cfg.tensor
  mesh = make_mesh(cfg, jax.devices()[:size])
  tx = make_optimizer(config.optimizer, STEPS)
  batches = make_batches(config)
  with jax.set_mesh(mesh):
    state = create_state(config.network, tx, mesh, config.seed)
    parts = state.params, state.ema, state.opt_state
    memory = {
      "held": [[held(part, d) for d in mesh.devices.flat] for part in parts],
      "counted": [tree_bytes(part) for part in parts],
      "table": sharding_table(*parts),
    }
    train_step = steps.jit_train_step(
      steps.make_train_step(config.network, tx, config.time, 0.9, config.seed),
      config.network,
      tx,
      mesh,
      batches.batch(0),
    )
    losses = []
    for i in range(STEPS):
      batch = steps.place_batch(batches.batch(i), mesh)
      state, metrics = train_step(state, batch)
      losses.append(float(metrics["loss"]))
  shards = kernel(state.params).addressable_shards
  return memory | {
    "losses": losses,
    "shards": len({str(shard.index) for shard in shards}),
    "alike": alike(state),
    "programs": train_step._cache_size(),
  }


def held(tree, device) -> int:
  """Bytes of the shards on a device."""
  shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
  return sum(s.data.nbytes for s in shards if s.device == device)


def kernel(params):
  return params["backbone"]["blocks"]["attention"]["query"]["kernel"]


def alike(state) -> bool:
  """Whether EMA and moments of a kernel are sharded like the kernel."""
  expected = kernel(state.params)
  moments = [
    x for x in jax.tree.leaves(state.opt_state) if x.shape == expected.shape
  ]
  arrays = [kernel(state.ema), *moments]
  return len(arrays) > 2 and all(
    x.sharding == expected.sharding for x in arrays
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
