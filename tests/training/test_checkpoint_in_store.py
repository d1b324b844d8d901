"""Corrupt checkpoints in a store stay where they are, and are marked."""

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils
from support.store import BUCKET, mounted

from lumina_jax.files import atomic
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.restore import FOLDER, read_ema
from lumina_jax.training.state import TrainState

KEY = f"bucket/run/{FOLDER}/"
COMMITTED = "commit_success.txt"


def state(step):
  tree = {"kernel": np.full((8, 8), step, np.float32)}
  return TrainState(np.int32(step), np.int32(0), tree, tree, tree)


ABSTRACT = jax.eval_shape(lambda: state(1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A disk that we take for a store; Orbax takes it for a disk."""
  monkeypatch.setattr(atomic, "in_store", lambda _: True)
  save(tmp_path, 2, 4, 6)
  return tmp_path


def save(folder, *steps, keep=3):
  checkpoints = Checkpoints(folder, keep)
  for step in steps:
    checkpoints.save(state(step))
  checkpoints.close()


def damage(folder, step):
  for path in (folder / FOLDER / str(step)).rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


def names(folder):
  return {p.name for p in (folder / FOLDER).iterdir()} - {"metadata"}


def test_a_corrupt_checkpoint_stays_marked_until_it_is_replaced(folder):
  damage(folder, 6)
  for _ in range(2):  # The second start finds the mark.
    checkpoints = Checkpoints(folder, 3)
    assert int(checkpoints.restore(ABSTRACT).step) == 4
    assert checkpoints.latest_step() == 4
    checkpoints.close()
    assert names(folder) == {"2", "4", "6", "6.corrupt"}
  checkpoints = Checkpoints(folder, 3)
  for step in (5, 6):
    checkpoints.save(state(step))
  checkpoints.close()
  assert names(folder) == {"4", "5", "6"}
  again = Checkpoints(folder, 3)
  np.testing.assert_array_equal(again.restore(ABSTRACT).ema["kernel"], 6)
  again.close()


def test_a_corrupt_checkpoint_displaces_no_intact_one(folder):
  damage(folder, 6)
  checkpoints = Checkpoints(folder, 1)
  assert int(checkpoints.restore(ABSTRACT).step) == 4
  checkpoints.save(state(5))
  checkpoints.close()
  assert names(folder) == {"5", "6", "6.corrupt"}
  assert read_ema(folder, ABSTRACT.ema)[0] == 5


def test_when_all_are_corrupt_the_second_start_is_from_scratch(folder):
  for step in (2, 4, 6):
    damage(folder, step)
  checkpoints = Checkpoints(folder, 3)
  with pytest.raises(OSError, match=r"6\.corrupt, 4\.corrupt, 2\.corrupt"):
    checkpoints.restore(ABSTRACT)
  checkpoints.close()
  again = Checkpoints(folder, 3)
  assert again.restore(ABSTRACT) is None
  again.save(state(2))
  again.close()
  assert names(folder) == {"2", "4", "4.corrupt", "6", "6.corrupt"}
  assert read_ema(folder, ABSTRACT.ema)[0] == 2


def test_a_mark_without_its_checkpoint_does_no_damage(folder):
  atomic.write_text(folder / FOLDER / "8.corrupt", "killed while marking")
  checkpoints = Checkpoints(folder, 3)
  assert int(checkpoints.restore(ABSTRACT).step) == 6
  checkpoints.save(state(8))
  checkpoints.close()
  assert names(folder) == {"4", "6", "8"}


@pytest.fixture
def store(monkeypatch):
  # Orbax would ask the real service for the kind of bucket.
  monkeypatch.setattr(
    gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False
  )
  with mounted(monkeypatch) as store:
    yield store


def put(store, step, committed=True):
  """The files that Orbax's Python code looks at."""
  for item in ("ema", "train"):
    for name in ("d/0", "manifest.ocdbt", COMMITTED):
      store.objects[f"{KEY}{step}/{item}/{name}"] = b""
  store.objects[f"{KEY}{step}/_CHECKPOINT_METADATA"] = b"{}"
  if committed:
    store.objects[f"{KEY}{step}/{COMMITTED}"] = b""


def test_orbax_lists_committed_checkpoints_and_ignores_marks(store):
  for step in (2, 4):
    put(store, step)
  put(store, 6, committed=False)  # Killed while it checkpoints.
  checkpoints = Checkpoints(f"{BUCKET}/run", 3)
  assert checkpoints.latest_step() == 4
  checkpoints._mark_corrupt(4, "manifest is empty")
  assert checkpoints.latest_step() == 2
  checkpoints.close()
  again = Checkpoints(f"{BUCKET}/run", 3)
  assert again.latest_step() == 2
  again._manager._maybe_await_cleanup_tmp_directory()
  again.close()
  kept = {name.removeprefix(KEY).split("/")[0] for name in store.objects}
  assert kept - {"metadata"} == {"2", "4", "4.corrupt"}
