"""One of two processes cannot read the newest checkpoint; both fall back.

Argument: the workdir.
"""

import sys

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.training import restore as restoring
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState

processes.initialize()
mesh = make_mesh(MeshConfig())
replicated = NamedSharding(mesh, PartitionSpec())
sharded = NamedSharding(mesh, PartitionSpec("data"))


def put(values, sharding):
  values = np.asarray(values)
  return jax.make_array_from_callback(
    values.shape, sharding, values.__getitem__
  )


def state(step):
  tree = {"kernel": put(np.full((8, 16), step, np.float32), sharded)}
  count = put(np.int32(step), replicated)
  return TrainState(count, put(np.int32(0), replicated), tree, tree, tree)


folder = epath.Path(sys.argv[1])
with Checkpoints(folder, keep=3) as store:
  for step in (2, 4):
    store.save(state(step))
  store.finish()

original = restoring.ocp.StandardCheckpointHandler.restore


def broken(self, directory, *args, **kwargs):
  if jax.process_index() == 1 and directory.parent.name == "4":
    raise ValueError("a bit has flipped")
  return original(self, directory, *args, **kwargs)


restoring.ocp.StandardCheckpointHandler.restore = broken
with Checkpoints(folder, keep=3) as store:
  found = store.restore(state(2))
names = sorted(path.name for path in (folder / "checkpoints").iterdir())
print("restored", int(found.step), *names, flush=True)
processes.finish()
