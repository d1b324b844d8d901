"""Prints, as JSON, the losses of a small run on the mesh given as arguments.

"experts=4" routes its feed-forwards, "data=2" and the like shape the mesh.
"""

import json
import sys

from support.configs import small_config

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state

STEPS = 4


def main(degrees: list[str]) -> None:
  import jax

  mesh = {axis: int(degree) for axis, degree in (d.split("=") for d in degrees)}
  changes = {}
  if experts := mesh.pop("experts", 0):
    changes = dict(model__experts=experts, model__routing=("time", "token"))
  changes |= {f"mesh__{axis}": degree for axis, degree in mesh.items()}
  config = small_config("next", **changes)
  devices = make_mesh(config.mesh)
  tx = make_optimizer(config.optimizer, STEPS)
  batches = make_batches(config)
  with jax.set_mesh(devices):
    state = create_state(config.network, tx, devices, config.seed)
    train_step = steps.jit_train_step(
      steps.make_train_step(config.network, tx, config.time, 0.9, config.seed),
      config.network,
      tx,
      devices,
      batches.batch(0),
    )
    losses = []
    for i in range(STEPS):
      batch = steps.place_batch(batches.batch(i), devices)
      state, metrics = train_step(state, batch)
      losses.append(float(metrics["loss"]))
  kernel = state.params["backbone"]["blocks"]["attention"]["query"]["kernel"]
  moments = jax.tree.leaves(
    state.opt_state, is_leaf=lambda x: getattr(x, "shape", None) == kernel.shape
  )
  ema = state.ema["backbone"]["blocks"]["attention"]["query"]["kernel"]
  print(
    json.dumps(
      {
        "losses": losses,
        "shards": len({str(s.index) for s in kernel.addressable_shards}),
        "alike": ema.sharding == kernel.sharding
        and all(
          m.sharding == kernel.sharding
          for m in moments
          if m.shape == kernel.shape
        ),
        "programs": train_step._cache_size(),
      }
    )
  )


if __name__ == "__main__":
  main(sys.argv[1:])
