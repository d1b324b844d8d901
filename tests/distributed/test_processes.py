"""Several processes as one program."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from support.configs import randomised, small_config
from support.fake_devices import HERE, begin_two, start, start_two

from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState


def test_processes_are_told_the_same():
  """In one run, since it is the start of the processes that takes time."""
  printed = start_two(2, HERE / "told_by_all.py", "all")
  lines = [
    [line for line in text.splitlines() if "Gloo" not in line]
    for text in printed
  ]
  assert lines[0][:-1] == ["only one says this", "and this 0"]
  assert len(lines[1]) == 1
  first, second = (json.loads(each[-1]) for each in lines)
  own = {
    "first": (True, False),
    "failed": tuple(
      f"OSError: {who}the disk is full" for who in ("", "process 0: ")
    ),
    "done": ([1], []),
  }
  for name, values in own.items():
    assert (first.pop(name), second.pop(name)) == values
  assert first == second
  assert first.pop("unequal").startswith(
    "ValueError: the config of process 0 is 'config 0', but that of process 1 "
    "'config 1'"
  )
  assert first == {
    "count": 2,
    "said": ["é 0", "é 1"],
    "any": [True, False],
    "first_says": 7,
    "local": 2,
    "rows": np.arange(8.0).reshape(4, 2).tolist(),
    "equal": "",
    "passed": "",
  }


@pytest.mark.slow
def test_all_that_fail_alike_leave_at_once():
  codes, _, seconds = ends("alike")
  assert codes == [3, 3] and seconds < 30


@pytest.mark.slow
@pytest.mark.long
def test_one_that_fails_does_not_leave_the_other_waiting():
  codes, errors, seconds = ends("one")
  assert codes[1] == 3 and codes[0] != 0 and seconds < 90
  assert "another task died" in errors[0]


def ends(how: str) -> tuple[list[int], list[str], float]:
  began = time.monotonic()
  running = begin_two(1, HERE / "told_by_all.py", how)
  try:
    errors = [process.communicate(timeout=120)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  codes = [process.returncode for process in running]
  return codes, errors, time.monotonic() - began


@pytest.mark.slow
def test_two_processes_draw_what_one_device_draws(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  one.mkdir()
  two.mkdir()
  script = HERE / "shared_pictures.py"
  assert json.loads(start(1, script, one)) == {"processes": 1, "devices": 1}
  for printed in start_two(2, script, two):
    where = json.loads(printed.splitlines()[-1])
    assert where == {"processes": 2, "devices": 4}
  expected = np.load(one / "process_0.npz")
  assert len(expected["times"]) > 1
  for number in range(2):
    found = np.load(two / f"process_{number}.npz")
    assert found.files == expected.files
    for name in expected.files:
      largest = np.abs(expected[name]).max()
      np.testing.assert_allclose(
        found[name], expected[name], rtol=0, atol=1e-5 * largest
      )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir of digits, whose network was not trained."""
  config = small_config(training__batch_rows=6)
  folder = tmp_path_factory.mktemp("runs") / "digits"
  folder.mkdir()
  run_config.save(config, folder)
  params = randomised(config).params
  store, number = Checkpoints(folder, keep=1), np.int32(1)
  store.save(TrainState(number, np.int32(0), params, params, {"count": number}))
  store.close()
  return folder


def test_a_run_is_loaded_onto_the_mesh_given(run):
  mesh = make_mesh(MeshConfig(fsdp=-1, data=1), jax.devices()[:1])
  step, pipe = workdirs.load_step(run, mesh)
  assert step == 1 and pipe.mesh is mesh
  for leaf in jax.tree.leaves(pipe.params):
    assert leaf.sharding.mesh == mesh
  alone = LuminaPipeline.from_workdir(run)
  assert alone.mesh is None
  jax.tree.map(np.testing.assert_array_equal, alone.params, pipe.params)


@pytest.mark.slow
def test_sampling_is_of_all_and_writing_of_one(run, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  words = [f"--workdir={run}", "--prompt=3 1", "--prompt=7"]
  start(1, "-m", "lumina_jax.sample", *words, f"--output={one}")
  printed = start_two(
    1, HERE / "joined.py", "lumina_jax.sample", *words, f"--output={two}"
  )
  assert "2 pictures in" in printed[0]
  assert not [x for x in printed[1].splitlines() if "Gloo" not in x]
  names = sorted(path.name for path in one.iterdir())
  assert names == sorted(path.name for path in two.iterdir())
  for name in names:
    a, b = (np.asarray(picture(x / name), int) for x in (one, two))
    assert np.abs(a - b).max() <= 1


def picture(path):
  from PIL import Image

  return Image.open(path)


@pytest.mark.slow
def test_sigterm_ends_sampling_at_once(run, tmp_path):
  """In the middle of it, as its many steps keep it busy."""
  running = begin_two(
    1, HERE / "joined.py", "lumina_jax.sample", f"--workdir={run}",
    "--prompt=7", f"--output={tmp_path}", "--num_inference_steps=1000000",
  )  # fmt: skip
  try:
    for process in running:
      while "Gloo" not in process.stdout.readline():  # They have met.
        assert process.poll() is None
    time.sleep(5)
    for process in running:
      process.send_signal(signal.SIGTERM)
    for process in running:
      process.communicate(timeout=60)
  finally:
    for process in running:
      process.kill()
  # One that has not been told yet may see the other die.
  codes = {process.returncode for process in running}
  assert -signal.SIGTERM in codes
  assert codes <= {-signal.SIGTERM, -signal.SIGABRT, 1}
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.long
def test_figures_do_not_depend_on_devices_or_processes(run):
  """Six rows a batch do not divide over four devices, nor over two of two."""
  words = ["lumina_jax.evaluate", f"--workdir={run}", "--cells=10"]
  found = []
  for how in (
    lambda: start(1, "-m", *words),
    lambda: start(4, "-m", *words),
    lambda: start_two(2, HERE / "joined.py", *words),
  ):
    how()
    found.append(json.loads((run / "evaluation.json").read_text()))
    (run / "evaluation.json").unlink()
  for other in found[1:]:
    loss = "held_out_loss_by_time"
    np.testing.assert_allclose(other[loss], found[0][loss], rtol=1e-4)
    for scale, values in found[0]["memorisation"].items():
      assert other["memorisation"][scale] == pytest.approx(values, rel=1e-3)
    for a, b in zip(other["accuracy"], found[0]["accuracy"], strict=True):
      assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.1)
      assert a | {"accuracy": 0} == b | {"accuracy": 0}


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_ends_all(run, tmp_path):
  (tmp_path / "file").write_text("")
  running = begin_two(
    1, HERE / "joined.py", "lumina_jax.sample", f"--workdir={run}",
    "--prompt=7", f"--output={tmp_path / 'file' / 'below'}",
  )  # fmt: skip
  try:
    errors = [process.communicate(timeout=120)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  assert all(process.returncode == 1 for process in running), errors
  assert all("cannot write to" in error for error in errors)


@pytest.mark.slow
def test_latents_are_made_on_one_device_whatever_the_mesh(tmp_path):
  printed = start(4, HERE / "online_latents.py", tmp_path)
  assert printed.splitlines()[-1] == "4 devices"


@pytest.mark.slow
def test_all_fall_back_from_what_one_of_them_cannot_read(tmp_path):
  printed = start_two(2, HERE / "unreadable.py", tmp_path)
  for text in printed:
    assert text.splitlines()[-1] == "restored 2 2 4.corrupt"
