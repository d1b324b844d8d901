"""Two processes initialise a state, sharded over both, from weights of a run.

Prints, as JSON, whether the shards of each process equal the weights, and how
many tensors are sharded. Argument: the workdir.
"""

import json
import sys

import jax
import numpy as np
from flax import traverse_util
from support.configs import tiny_config

from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.runs import init_from
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state, replace_params


def main(workdir: str) -> None:
  processes.initialize()
  config = tiny_config("text_to_image", model__depth=3)
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
  with jax.set_mesh(mesh):
    tx = make_optimizer(config.optimizer, 1000)
    with processes.only_first_prints():
      start = init_from.resolve(config.network, workdir, strict=False)
    fresh = create_state(config.network, tx, mesh, 0)
    placed = jax.tree.map(lambda x: x.sharding, fresh)
    state = replace_params(fresh, start)
  alike = jax.tree.map(lambda x: x.sharding, state) == placed
  sharded = 0
  for tree in (state.params, state.ema):
    flat = traverse_util.flatten_dict(tree)
    for path in start.paths:
      expected = start.read(path)
      shards = flat[path].addressable_shards
      sharded += shards[0].data.shape != expected.shape
      alike &= all(
        np.array_equal(shard.data, expected[shard.index]) for shard in shards
      )
  taken = len(start.paths)
  results = {"alike": bool(alike), "sharded": sharded, "taken": taken}
  print(json.dumps(results), flush=True)
  processes.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
