"""Checkpoints: saving, reading while saving, damage, other networks."""

import jax
import numpy as np
import pytest
from etils import epath
from support.configs import small_config

from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.train import train
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.restore import FOLDER, ocp, read_ema
from lumina_jax.training.state import TrainState, abstract_state


def state(step):
  """A state large enough that writing it takes a while."""
  values = jax.random.normal(jax.random.key(step), (4, 512, 1024))
  tree = {"kernel": values}
  return TrainState(np.int32(step), np.int32(0), tree, tree, tree)


ABSTRACT = jax.eval_shape(lambda: state(1))


def test_a_reader_ignores_a_save_in_progress(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.save(state(1))
  assert checkpoints.latest_step() in (None, 1)
  early = read_ema(tmp_path, ABSTRACT.ema)
  assert early is None or early[0] == 1
  checkpoints.finish()
  assert checkpoints.latest_step() == 1
  checkpoints.close()
  step, ema = read_ema(tmp_path, ABSTRACT.ema)
  assert step == 1
  np.testing.assert_array_equal(ema["kernel"], state(1).ema["kernel"])


def test_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 3, 3):  # As when SIGTERM follows a checkpoint.
      checkpoints.save(state(step))
  names = {p.name for p in (tmp_path / FOLDER).iterdir()}
  assert {name for name in names if name.isdigit()} == {"2", "3"}


def test_a_transient_error_moves_nothing(tmp_path, monkeypatch):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(state(1))

  def full(*_, **__):
    raise MemoryError("no room")

  monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", full)
  with (
    Checkpoints(tmp_path, keep=2) as checkpoints,
    pytest.raises(MemoryError),
  ):
    checkpoints.restore(ABSTRACT)
  assert (tmp_path / FOLDER / "1").exists()


def test_a_declined_save_is_an_error(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, keep=2)
  monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: False)
  with pytest.raises(RuntimeError, match="checkpoint 2 was not written"):
    checkpoints.save(state(2))


def test_a_save_that_cannot_start_is_tried_again(tmp_path, monkeypatch):
  """Threads of a failed save may write while Orbax deletes its folder."""
  rest = tmp_path / FOLDER / "1.orbax-checkpoint-tmp" / "train"
  rest.mkdir(parents=True)
  rmtree, failures = type(epath.Path(rest)).rmtree, []

  def interrupted(self, *args, **kwargs):
    if not failures:
      failures.append(str(self))
      raise OSError(39, "Directory not empty")
    return rmtree(self, *args, **kwargs)

  monkeypatch.setattr(type(epath.Path(rest)), "rmtree", interrupted)
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(state(2))
    checkpoints.finish()
    assert checkpoints.latest_step() == 2
  assert failures == [str(rest.parent)] and not rest.exists()


def files(folder):
  return [path for path in folder.rglob("*") if path.is_file()]


def damage(workdir, how, step=6):
  folder = workdir / FOLDER / str(step)
  data = max(
    (path for path in files(folder) if path.parent.name == "d"),
    key=lambda path: path.stat().st_size,
  )
  match how:
    case "truncate":
      data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    case "remove":
      data.unlink()
    case "empty":
      for path in files(folder):
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def abstract():
  """The state of a small run, without memory."""
  config = small_config()
  tx = make_optimizer(config.optimizer, config.training.steps)
  return abstract_state(config.network, tx, make_mesh(config.mesh))


@pytest.mark.parametrize("how", ["truncate", "remove", "empty"])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
  run_copy, abstract, how, caplog
):
  damage(run_copy, how)
  with Checkpoints(run_copy, keep=3) as checkpoints:
    assert int(checkpoints.restore(abstract).step) == 4
    assert checkpoints.latest_step() == 4
  assert "checkpoint 6 cannot be read" in caplog.text
  assert (run_copy / FOLDER / "6.corrupt").exists()


@pytest.mark.usefixtures("shared_programs")
def test_training_replaces_a_corrupt_checkpoint(run_copy, trained_run):
  damage(run_copy, "truncate")
  state = train(run_config.load(run_copy), run_copy)
  assert int(state.step) == 6
  assert (run_copy / FOLDER / "6.corrupt").exists()
  again, whole = (
    LuminaPipeline.from_workdir(folder).params
    for folder in (run_copy, trained_run.workdir)
  )
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_without_an_intact_checkpoint_an_error_loses_nothing(
  run_copy, abstract
):
  for step in (2, 4, 6):
    damage(run_copy, "empty", step)
  with pytest.raises(OSError, match=r"can be read: \[2, 4, 6\]"):
    read_ema(run_copy, abstract.ema)
  assert (run_copy / FOLDER / "6").exists()  # Reading changes nothing.
  with (
    Checkpoints(run_copy, keep=3) as checkpoints,
    pytest.raises(OSError, match=r"6\.corrupt, 4\.corrupt, 2\.corrupt"),
  ):
    checkpoints.restore(abstract)
  assert (run_copy / FOLDER / "4.corrupt").exists()


def test_an_unfinished_checkpoint_does_not_count(run_copy):
  folder = run_copy / FOLDER
  (folder / "6").rename(folder / "6.orbax-checkpoint-tmp-1")
  with Checkpoints(run_copy, keep=3) as checkpoints:
    assert checkpoints.latest_step() == 4


def test_a_checkpoint_of_another_network_is_not_corrupt(run_copy):
  run_config.save(small_config(model__depth=3), run_copy)
  with pytest.raises(ValueError, match="of another network"):
    LuminaPipeline.from_workdir(run_copy)
  assert (run_copy / FOLDER / "6").exists()
