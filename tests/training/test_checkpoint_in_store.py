"""A broken checkpoint in a store is left where it is, and marked."""

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
  """A disk that is taken for a store; orbax itself takes it for a disk."""
  monkeypatch.setattr(atomic, "in_store", lambda _: True)
  save(tmp_path, 2, 4, 6)
  return tmp_path


def save(folder, *steps, keep=3):
  saved = Checkpoints(folder, keep)
  for step in steps:
    saved.save(state(step))
  saved.close()


def harm(folder, step):
  for path in (folder / FOLDER / str(step)).rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


def names(folder):
  return {p.name for p in (folder / FOLDER).iterdir()} - {"metadata"}


def test_what_is_broken_stays_marked_until_the_run_is_there_again(folder):
  harm(folder, 6)
  for _ in range(2):  # The second start knows it by the mark.
    saved = Checkpoints(folder, 3)
    assert int(saved.restore(ABSTRACT).step) == 4
    assert saved.latest_step() == 4
    saved.close()
    assert names(folder) == {"2", "4", "6", "6.corrupt"}
  saved = Checkpoints(folder, 3)
  for step in (5, 6):
    saved.save(state(step))
  saved.close()
  assert names(folder) == {"4", "5", "6"}
  again = Checkpoints(folder, 3)
  np.testing.assert_array_equal(again.restore(ABSTRACT).ema["kernel"], 6)
  again.close()


def test_a_broken_one_pushes_no_good_one_out(folder):
  harm(folder, 6)
  saved = Checkpoints(folder, 1)
  assert int(saved.restore(ABSTRACT).step) == 4
  saved.save(state(5))
  saved.close()
  assert names(folder) == {"5", "6", "6.corrupt"}
  assert read_ema(folder, ABSTRACT.ema)[0] == 5


def test_when_all_are_broken_the_second_start_is_from_the_beginning(folder):
  for step in (2, 4, 6):
    harm(folder, step)
  saved = Checkpoints(folder, 3)
  with pytest.raises(OSError, match=r"6\.corrupt, 4\.corrupt, 2\.corrupt"):
    saved.restore(ABSTRACT)
  saved.close()
  again = Checkpoints(folder, 3)
  assert again.restore(ABSTRACT) is None
  again.save(state(2))
  again.close()
  assert names(folder) == {"2", "4", "4.corrupt", "6", "6.corrupt"}
  assert read_ema(folder, ABSTRACT.ema)[0] == 2


def test_a_mark_without_its_checkpoint_does_no_harm(folder):
  atomic.write_text(folder / FOLDER / "8.corrupt", "killed half way")
  saved = Checkpoints(folder, 3)
  assert int(saved.restore(ABSTRACT).step) == 6
  saved.save(state(8))
  saved.close()
  assert names(folder) == {"4", "6", "8"}


@pytest.fixture
def store(monkeypatch):
  # What kind of bucket it is, orbax would ask the real service.
  monkeypatch.setattr(
    gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False
  )
  with mounted(monkeypatch) as store:
    yield store


def put(store, step, committed=True):
  """What orbax writes, as far as its Python reads it."""
  for item in ("ema", "train"):
    for name in ("d/0", "manifest.ocdbt", COMMITTED):
      store.objects[f"{KEY}{step}/{item}/{name}"] = b""
  store.objects[f"{KEY}{step}/_CHECKPOINT_METADATA"] = b"{}"
  if committed:
    store.objects[f"{KEY}{step}/{COMMITTED}"] = b""


def test_orbax_sees_what_is_committed_and_leaves_marks_alone(store):
  for step in (2, 4):
    put(store, step)
  put(store, 6, committed=False)  # Killed while it saved.
  saved = Checkpoints(f"{BUCKET}/run", 3)
  assert saved.latest_step() == 4
  saved._mark(4, ValueError("manifest is empty"))
  assert saved.latest_step() == 2
  saved.close()
  again = Checkpoints(f"{BUCKET}/run", 3)
  assert again.latest_step() == 2
  again._manager._maybe_await_cleanup_tmp_directory()
  again.close()
  kept = {name.removeprefix(KEY).split("/")[0] for name in store.objects}
  assert kept - {"metadata"} == {"2", "4", "4.corrupt"}
