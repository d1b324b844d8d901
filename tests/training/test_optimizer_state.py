"""The optimizer's state: its content, shardings and checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest
from support.configs import tiny_config

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.parallel.sharding_table import tree_bytes
from lumina_jax.training import muon
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.parameter_groups import parameter_names
from lumina_jax.training.state import (
  TrainState,
  abstract_state,
  state_shardings,
)

FROZEN = "^text_encoder/", "blocks/attention/text_"
GROUPS = (("blocks/attention/", 0.5, 0.0), ("final", 2.0, 0.1))
ALL = dict(name="muon", groups=GROUPS, frozen=FROZEN)


@pytest.fixture(scope="module")
def config():
  return tiny_config("text_to_image")


def optimizer(config, **changes):
  return make_optimizer(dataclasses.replace(config.optimizer, **changes), 10)


def by_parameter(tree):
  """Leaves below each name of a parameter, whatever is above it."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for start in ("backbone/", "text_encoder/"):
      if start in name:
        found.setdefault(start + name.split(start, 1)[1], []).append(leaf)
  return found


@pytest.mark.parametrize(
  "changes", [{}, dict(frozen=FROZEN), dict(groups=GROUPS), ALL]
)
def test_moments_lie_like_their_parameters(config, changes):
  tx = optimizer(config, **changes)
  mesh = make_mesh(config.mesh)
  abstract, placed = state_shardings(config.network, tx, mesh)
  assert jax.tree.structure(abstract) == jax.tree.structure(placed)
  params = by_parameter(placed.params)
  moments = by_parameter(placed.opt_state)
  shapes, of_moments = map(by_parameter, (abstract.params, abstract.opt_state))
  assert any(sharding[0].spec[1:] for sharding in params.values())
  for name, shardings in moments.items():
    assert all(sharding == params[name][0] for sharding in shardings)
    assert all(x.shape == shapes[name][0].shape for x in of_moments[name])


def test_the_state_holds_only_the_moments_it_needs(config):
  """Two moments for AdamW, one for Muon, none for frozen parameters."""
  tx = optimizer(config, **ALL)
  state = abstract_state(config.network, tx, make_mesh(config.mesh))
  counts = {n: len(x) for n, x in by_parameter(state.opt_state).items()}
  for name in jax.tree.leaves(parameter_names(state.params)):
    if name.startswith("text_encoder/") or "blocks/attention/text_" in name:
      assert name not in counts
    else:
      assert counts[name] == (1 if muon.matrix_axes(name) else 2)
  local, whole = tree_bytes(state.opt_state)
  assert local == whole < 2 * tree_bytes(state.params)[0]


def test_a_checkpoint_restores_every_bit(config, tmp_path):
  tx, rng = optimizer(config, **ALL), np.random.default_rng(0)

  def random(tree):
    return jax.tree.map(
      lambda x: rng.uniform(1, 9, x.shape).astype(x.dtype), tree
    )

  abstract = abstract_state(config.network, tx, make_mesh(config.mesh))
  state = random(abstract)._replace(step=np.int32(3))
  saved = Checkpoints(tmp_path, 1)
  saved.save(state)
  saved.close()
  again = Checkpoints(tmp_path, 1)
  restored = again.restore(abstract)
  again.close()
  assert isinstance(restored, TrainState)
  assert jax.tree.structure(restored) == jax.tree.structure(abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_checkpoint_of_another_optimizer_is_refused(config, tmp_path):
  mesh = make_mesh(config.mesh)
  plain, other = optimizer(config), optimizer(config, name="muon")
  saved = Checkpoints(tmp_path, 1)
  saved.save(
    jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype),
      abstract_state(config.network, plain, mesh),
    )
  )
  saved.close()
  again = Checkpoints(tmp_path, 1)
  with pytest.raises(ValueError, match=r"these differ: .*opt_state"):
    again.restore(abstract_state(config.network, other, mesh))
  again.close()
