"""Prints, as JSON, a state of Muon, groups and frozen parameters after updates.

For fsdp on one device and on all of them: "alike", whether each moment is
sharded like its parameter; "moments", their number of values; "sum", a checksum
of the parameters after two updates; "restored", whether a checkpoint restores
every bit. Argument: the folder to save to.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.configs import tiny_config

from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.parameter_groups import trainable_mask
from lumina_jax.training.state import (
  TrainState,
  abstract_state,
  create_state,
  state_shardings,
)

FROZEN = "^text_encoder/", "blocks/attention/text_"
GROUPS = (("blocks/attention/", 0.5, 0.0), ("final", 2.0, 0.1))


def update(tx, state: TrainState) -> TrainState:
  """One update by gradients that depend on nothing but the parameter."""
  grads = jax.tree.map(
    lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape),
    state.params,
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return state._replace(step=state.step + 1, params=params, opt_state=opt_state)


def alike(state: TrainState) -> bool:
  """Whether moments are sharded like the parameters of the same path."""
  leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
  params = {
    tuple(key.key for key in path): leaf.sharding
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
  }
  found = []
  for path, leaf in leaves:
    names = tuple(getattr(key, "key", None) for key in path)
    for start in range(len(names)):
      if names[start:] in params:
        found.append(leaf.sharding == params[names[start:]])
  return len(found) > 20 and all(found)


def check(folder: str, devices: list[jax.Device]) -> dict:
  config = tiny_config("text_to_image")
  cfg = dataclasses.replace(
    config.optimizer, name="muon", groups=GROUPS, frozen=FROZEN
  )
  tx = make_optimizer(cfg, 10)
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices)
  with jax.set_mesh(mesh):
    state = create_state(config.network, tx, mesh, 0)
    start = jax.tree.map(np.asarray, state.params)
    _, placed = state_shardings(config.network, tx, mesh)
    step = jax.jit(
      lambda state: update(tx, update(tx, state)), out_shardings=placed
    )
    state = step(state)
    saved = Checkpoints(folder, 1)
    saved.save(state)
    saved.close()
    again = Checkpoints(folder, 1).restore(
      abstract_state(config.network, tx, mesh)
    )
  same = [
    bool((np.asarray(a) == np.asarray(b)).all()) and a.sharding == b.sharding
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True)
  ]
  moved = jax.tree.map(
    lambda a, b: bool((np.asarray(a) != b).any()), state.params, start
  )
  sizes = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim > 1]
  return {
    "alike": alike(state),
    "moments": sum(sizes),
    "sum": sum(
      float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(state.params)
    ),
    "restored": all(same),
    "frozen": moved == trainable_mask(cfg, start),
  }


if __name__ == "__main__":
  folder, devices = sys.argv[1], jax.devices()
  results = check(f"{folder}/1", devices[:1]), check(f"{folder}/8", devices)
  print(json.dumps(results))
