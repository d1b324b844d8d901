"""Checkpoints that are read while a run writes them."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lumina_jax.training import checkpoint
from lumina_jax.training import restore as restoring
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.restore import read_ema
from lumina_jax.training.state import TrainState


def state(step):
  """A state large enough that writing it takes a while."""
  values = jax.random.normal(jax.random.key(step), (4, 512, 1024))
  tree = {"kernel": values}
  return TrainState(np.int32(step), np.int32(0), tree, tree, tree)


def test_a_reader_leaves_a_save_in_flight_alone(tmp_path):
  saved = Checkpoints(tmp_path, keep=2)
  abstract = jax.eval_shape(lambda: state(1).ema)
  saved.save(state(1))
  early = read_ema(tmp_path, abstract)
  assert early is None or early[0] == 1
  saved.close()
  step, ema = read_ema(tmp_path, abstract)
  assert step == 1
  np.testing.assert_array_equal(ema["kernel"], state(1).ema["kernel"])


def test_the_last_ones_are_kept(tmp_path):
  saved = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    saved.save(state(step))
  saved.close()
  names = {p.name for p in (tmp_path / checkpoint.FOLDER).iterdir()}
  assert {name for name in names if name.isdigit()} == {"2", "3"}


def test_a_fault_of_the_moment_moves_nothing_aside(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path, keep=2)
  saved.save(state(1))
  saved.close()
  again = Checkpoints(tmp_path, keep=2)

  def full(*_, **__):
    raise MemoryError("no room")

  handler = restoring.ocp.StandardCheckpointHandler
  monkeypatch.setattr(handler, "restore", full)
  with pytest.raises(MemoryError):
    again.restore(jax.eval_shape(lambda: state(1)))
  assert (tmp_path / checkpoint.FOLDER / "1").exists()


def test_a_state_of_before_skips_were_counted_is_read(tmp_path):
  with Checkpoints(tmp_path, keep=2) as store:
    old = state(3)._asdict()
    del old["skipped"]
    ema = old.pop("ema")
    store._manager.save(
      3,
      args=ocp.args.Composite(
        ema=ocp.args.StandardSave(ema), train=ocp.args.StandardSave(old)
      ),
    )
    store._manager.wait_until_finished()
    found = store.restore(jax.eval_shape(lambda: state(1)))
  assert int(found.step) == 3 and int(found.skipped) == 0
  np.testing.assert_array_equal(
    found.params["kernel"], state(3).params["kernel"]
  )


def test_a_save_under_way_is_not_the_newest(tmp_path):
  with Checkpoints(tmp_path, keep=2) as store:
    store.save(state(1))
    early = store.latest_step()
    store.finish()
    assert early in (None, 1) and store.latest_step() == 1


def test_a_save_that_is_declined_is_an_error(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path, keep=2)
  monkeypatch.setattr(saved._manager, "save", lambda *_, **__: False)
  with pytest.raises(RuntimeError, match="checkpoint 2 was not written"):
    saved.save(state(2))


def test_a_step_is_saved_once(tmp_path):
  saved = Checkpoints(tmp_path, keep=2)
  for _ in range(2):  # As when SIGTERM comes right after a checkpoint.
    saved.save(state(2))
    saved.finish()
  assert saved.latest_step() == 2
  saved.close()
