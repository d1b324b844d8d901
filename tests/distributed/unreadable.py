"""One of two processes cannot read the newest checkpoint; both go back.

python unreadable.py WORKDIR process=I of=N port=P
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

told = dict(word.split("=") for word in sys.argv[2:])
number = int(told["process"])
processes.start(f"localhost:{told['port']}", int(told["of"]), number)
mesh = make_mesh(MeshConfig())
everywhere = NamedSharding(mesh, PartitionSpec())
spread = NamedSharding(mesh, PartitionSpec("data"))


def put(values, sharding):
  values = np.asarray(values)
  return jax.make_array_from_callback(
    values.shape, sharding, values.__getitem__
  )


def state(step):
  tree = {"kernel": put(np.full((8, 16), step, np.float32), spread)}
  count = put(np.int32(step), everywhere)
  return TrainState(count, put(np.int32(0), everywhere), tree, tree, tree)


folder = epath.Path(sys.argv[1])
with Checkpoints(folder, keep=3) as store:
  for step in (2, 4):
    store.save(state(step))
  store.finish()

usual = restoring.ocp.StandardCheckpointHandler.restore


def broken(self, directory, *args, **kwargs):
  if number == 1 and directory.parent.name == "4":
    raise ValueError("a bit has flipped")
  return usual(self, directory, *args, **kwargs)


restoring.ocp.StandardCheckpointHandler.restore = broken
with Checkpoints(folder, keep=3) as store:
  found = store.restore(state(2))
names = sorted(path.name for path in (folder / "checkpoints").iterdir())
print("restored", int(found.step), *names, flush=True)
processes.finish()
