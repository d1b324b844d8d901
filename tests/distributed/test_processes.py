"""Several processes as one program."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from support.configs import randomised, small_config
from support.fake_devices import SCRIPTS, lines, result, run, run_all, start_all

from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState

pytestmark = pytest.mark.e2e


def test_processes_communicate():
  """In one run, since starting processes takes most of the time."""
  printed = run_all(2, 2, SCRIPTS / "communication.py", "together")
  assert lines(printed[0])[:-1] == ["only the first prints this"]
  assert len(lines(printed[1])) == 1
  first, second = map(result, printed)
  own = {
    "first": (True, False),
    "failed": tuple(
      f"OSError: {prefix}the disk is full" for prefix in ("", "process 0: ")
    ),
    "calls": ([1], []),
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
    "exchange": ["é 0", "é 1"],
    "broadcast": 7,
    "local": 2,
    "rows": np.arange(8.0).reshape(4, 2).tolist(),
    "equal": "",
    "passed": "",
  }


def test_processes_that_fail_alike_exit_at_once():
  codes, _, seconds = ends("both")
  assert codes == [3, 3] and seconds < 30


@pytest.mark.long
def test_one_that_fails_does_not_leave_the_other_waiting():
  codes, errors, seconds = ends("one")
  assert codes[1] == 3 and codes[0] != 0 and seconds < 90
  assert "another task died" in errors[0]


def ends(how: str) -> tuple[list[int], list[str], float]:
  start = time.monotonic()
  running = start_all(2, 1, SCRIPTS / "communication.py", how)
  try:
    codes = [process.wait(120) for process in running]
  finally:
    for process in running:
      process.kill()
  return codes, [p.stderr for p in running], time.monotonic() - start


def test_two_processes_sample_like_one_device(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  one.mkdir()
  two.mkdir()
  script = SCRIPTS / "shared_samples.py"
  assert result(run(1, script, one)) == {"processes": 1, "devices": 1}
  for printed in run_all(2, 2, script, two):
    assert result(printed) == {"processes": 2, "devices": 4}
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
def workdir(tmp_path_factory):
  """A run of digits whose network is random."""
  config = small_config(training__batch_rows=6)
  folder = tmp_path_factory.mktemp("runs") / "digits"
  folder.mkdir()
  run_config.save(config, folder)
  params = randomised(config).params
  store, number = Checkpoints(folder, keep=1), np.int32(1)
  store.save(TrainState(number, np.int32(0), params, params, {"count": number}))
  store.close()
  return folder


def test_a_run_is_loaded_onto_a_mesh(workdir):
  mesh = make_mesh(MeshConfig(fsdp=-1, data=1), jax.devices()[:1])
  step, components = workdirs.load_step(workdir, mesh)
  assert step == 1 and components.mesh is mesh
  for leaf in jax.tree.leaves(components.params):
    assert leaf.sharding.mesh == mesh
  alone = LuminaPipeline.from_workdir(workdir).components
  assert alone.mesh is None
  jax.tree.map(np.testing.assert_array_equal, alone.params, components.params)


def test_all_processes_sample_and_the_first_writes(workdir, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  words = [f"--workdir={workdir}", "--prompt=3 1", "--prompt=7"]
  run(1, "lumina_jax.infer", *words, f"--output={one}")
  printed = run_all(2, 1, "lumina_jax.infer", *words, f"--output={two}")
  assert "2 samples in" in printed[0]
  assert not lines(printed[1])
  names = sorted(path.name for path in one.iterdir())
  assert names == sorted(path.name for path in two.iterdir())
  for name in names:
    a, b = (np.asarray(Image.open(x / name), int) for x in (one, two))
    assert np.abs(a - b).max() <= 1


def test_sigterm_ends_sampling_at_once(workdir, tmp_path):
  running = start_all(
    2, 1, "lumina_jax.infer", f"--workdir={workdir}", "--prompt=7",
    f"--output={tmp_path}", "--num_inference_steps=1000000",
  )  # fmt: skip
  try:
    for process in running:
      while "Gloo" not in process.stdout:  # They are connected.
        assert process.poll() is None, process.output()
        time.sleep(0.05)
    time.sleep(3)  # Its many steps keep it busy.
    for process in running:
      process.send_signal(signal.SIGTERM)
    codes = {process.wait(60) for process in running}
  finally:
    for process in running:
      process.kill()
  # A process may see the other one die before its own signal arrives.
  assert -signal.SIGTERM in codes
  assert codes <= {-signal.SIGTERM, -signal.SIGABRT, 1}
  assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_metrics_do_not_depend_on_devices_or_processes(workdir):
  """Six rows per batch do not divide over four devices, nor over two of two."""
  words = ["lumina_jax.evaluate", f"--workdir={workdir}", "--cells=10"]
  found = []
  for start in (
    lambda: run(1, *words),
    lambda: run(4, *words),
    lambda: run_all(2, 2, *words),
  ):
    start()
    found.append(json.loads((workdir / "evaluation.json").read_text()))
    (workdir / "evaluation.json").unlink()
  for other in found[1:]:
    loss = "held_out_loss_by_time"
    np.testing.assert_allclose(other[loss], found[0][loss], rtol=1e-4)
    for scale, values in found[0]["memorisation"].items():
      assert other["memorisation"][scale] == pytest.approx(values, rel=1e-3)
    for a, b in zip(other["accuracy"], found[0]["accuracy"], strict=True):
      assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.1)
      assert a | {"accuracy": 0} == b | {"accuracy": 0}


def test_a_folder_that_cannot_be_written_ends_all(workdir, tmp_path):
  (tmp_path / "file").write_text("")
  running = start_all(
    2, 1, "lumina_jax.infer", f"--workdir={workdir}", "--prompt=7",
    f"--output={tmp_path / 'file' / 'below'}",
  )  # fmt: skip
  try:
    assert [process.wait(120) for process in running] == [1, 1]
  finally:
    for process in running:
      process.kill()
  assert all("cannot write to" in process.stderr for process in running)


def test_latents_are_encoded_on_one_device_under_any_mesh(tmp_path):
  printed = run(4, SCRIPTS / "online_latents.py", tmp_path)
  assert printed.splitlines()[-1] == "4 devices"


def test_all_fall_back_from_a_checkpoint_that_one_cannot_read(tmp_path):
  for printed in run_all(2, 2, SCRIPTS / "unreadable_checkpoint.py", tmp_path):
    assert lines(printed)[-1] == "restored 2 2 4.corrupt"
