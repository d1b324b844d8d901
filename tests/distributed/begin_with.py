"""Two processes begin a state, sharded over both, with weights of a run.

Prints, as JSON, whether what each holds is what there is, and how many tensors
are cut. Arguments: the workdir, then "process=1 of=2 port=12345".
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


def main(workdir: str, *words: str) -> None:
  said = dict(word.split("=") for word in words)
  port, number = said["port"], int(said["process"])
  processes.start(f"localhost:{port}", int(said["of"]), number)
  config = tiny_config("text_to_image", model__depth=3)
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
  with jax.set_mesh(mesh):
    tx = make_optimizer(config.optimizer, 1000)
    start = init_from.resolve(config.network, workdir, strict=False)
    fresh = create_state(config.network, tx, mesh, 0)
    placed = jax.tree.map(lambda x: x.sharding, fresh)
    state = replace_params(fresh, start)
  alike = jax.tree.map(lambda x: x.sharding, state) == placed
  cut = 0
  for tree in (state.params, state.ema):
    flat = traverse_util.flatten_dict(tree)
    for path in start.paths:
      there = start.read(path)
      shards = flat[path].addressable_shards
      cut += shards[0].data.shape != there.shape
      alike &= all(
        np.array_equal(shard.data, there[shard.index]) for shard in shards
      )
  found = {"alike": bool(alike), "cut": cut, "taken": len(start.paths)}
  print(json.dumps(found), flush=True)
  processes.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
