"""Each thing a user can get wrong: a clear message, no traceback, exit 1."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from support.configs import small_config, small_flags
from support.forks import fork

from lumina_jax import train as training
from lumina_jax.commands import start as entry_point
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints


def fail(module: str, *words) -> str:
  """Runs a command that must fail; returns its message."""
  done = fork(module, *words)
  assert done.returncode in (1, 2), done.stderr
  assert "Traceback" not in done.stderr, done.stderr
  return done.stderr


def files(folder) -> list[pathlib.Path]:
  return [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of six steps with checkpoints at 2, 4 and 6."""
  folder = epath.Path(tmp_path_factory.mktemp("run"))
  config = small_config()
  workdirs.claim(config, folder, allow_change=False)
  training.train(config, folder)
  return folder


@pytest.fixture
def copy(workdir, tmp_path):
  """A copy of that run, to break."""
  shutil.copytree(workdir, tmp_path / "copy")
  return epath.Path(tmp_path / "copy")


def test_mistyped_config_override(tmp_path):
  message = fail(
    "train",
    "--config=configs/digits.py",
    f"--workdir={tmp_path}",
    "--config.training.setps=3",
  )
  assert "setps" in message


def test_unknown_variant_and_missing_config(tmp_path):
  message = fail(
    "train", "--config=configs/digits.py:nxet", f"--workdir={tmp_path}"
  )
  assert "unknown variant 'nxet'" in message and "'next'" in message
  message = fail(
    "train", "--config=configs/nothing.py", f"--workdir={tmp_path}"
  )
  assert "configs/nothing.py" in message


def test_workdir_that_is_none_or_has_no_checkpoint(tmp_path):
  message = fail("sample", f"--workdir={tmp_path}", "--prompt=7")
  assert "no config.json" in message and "train" in message
  run_config.save(small_config(), tmp_path)
  message = fail("sample", f"--workdir={tmp_path}", "--prompt=7")
  assert "no complete checkpoint" in message


def test_workdir_of_another_config_is_refused_unless_told(workdir, copy):
  flags = small_flags(optimizer__learning_rate=0.5, training__steps=8)
  words = ["--config=configs/digits.py", f"--workdir={copy}", *flags]
  message = fail("train", *words)
  assert "optimizer.learning_rate: 0.002 -> 0.5" in message
  assert "training.steps: 6 -> 8" in message
  assert "--allow_config_change" in message
  assert run_config.load(copy) == run_config.load(workdir)
  longer = small_config(training__steps=8)
  folder = workdirs.claim(longer, copy, allow_change=True)
  assert int(training.train(longer, folder).step) == 8
  assert run_config.load(copy) == longer


@pytest.mark.parametrize("harm", ["truncate", "remove", "empty"])
def test_broken_checkpoint_falls_back_to_the_one_before(copy, harm, caplog):
  newest = copy / "checkpoints" / "6"
  data = max(
    (p for p in files(newest) if p.parent.name == "d"),
    key=lambda p: p.stat().st_size,
  )
  if harm == "truncate":
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
  elif harm == "remove":
    data.unlink()
  else:
    for path in files(newest):
      path.write_bytes(b"")
  state = training.train(run_config.load(copy), copy)
  assert int(state.step) == 6
  assert "checkpoint 6 cannot be read" in caplog.text
  assert (copy / "checkpoints" / "6.corrupt").exists()
  # The place is free again: training saved a whole checkpoint there.
  assert Checkpoints(copy, 3).latest_step() == 6
  assert LuminaPipeline.from_workdir(copy).params


def test_no_readable_checkpoint_is_an_error_that_loses_nothing(copy):
  for step in (2, 4, 6):
    for path in files(copy / "checkpoints" / str(step)):
      path.write_bytes(b"")
  with pytest.raises(OSError, match=r"can be read: \[2, 4, 6\]"):
    LuminaPipeline.from_workdir(copy)
  assert (copy / "checkpoints" / "6").exists()  # Reading changes nothing.
  with pytest.raises(OSError, match=r"6\.corrupt, 4\.corrupt, 2\.corrupt"):
    training.train(run_config.load(copy), copy)
  assert (copy / "checkpoints" / "4.corrupt").exists()


def test_a_start_that_fails_leaves_no_config_behind(tmp_path):
  words = ["--config=configs/digits.py", f"--workdir={tmp_path}"]
  flags = small_flags(training__steps=2)
  assert "warmup_steps = 2 must be below" in fail("train", *words, *flags)
  assert not (tmp_path / run_config.FILE).exists()


def test_a_change_that_cannot_go_on_leaves_the_run_as_it_was(copy):
  before = run_config.load(copy)
  other = small_config(model__depth=3)
  workdirs.claim(other, copy, allow_change=True)
  with pytest.raises(ValueError, match="of another network"):
    training.train(other, copy)
  with pytest.raises(ValueError, match=r"past training\.steps = 4"):
    training.train(small_config(training__steps=4), copy)
  assert run_config.load(copy) == before
  assert LuminaPipeline.from_workdir(copy).params


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(training__sample_prompts=("7" * 200,)), "sample_prompts.*largest"),
    (dict(data__row_words=4), "raise data.row_tokens or data.row_words"),
    (dict(text_encoder__max_words=64), "max_words = 64 exceeds the 40 words"),
    (dict(training__log_every=4), "must be a multiple of log_every = 4"),
    (dict(sampling__rows=0), "rows = 0"),
    (dict(model__patch=(0, 4)), "patch = \\(0, 4\\)"),
    (dict(optimizer__clip=0.0), "clip = 0.0"),
  ],
)
def test_numbers_that_do_not_go_together_fail_at_the_start(
  tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    training.train(small_config(**changes), epath.Path(tmp_path))
  assert not (tmp_path / run_config.FILE).exists()


def test_half_written_checkpoint_does_not_count(copy):
  newest = copy / "checkpoints" / "6"
  newest.rename(copy / "checkpoints" / "6.orbax-checkpoint-tmp-1")
  assert Checkpoints(copy, 3).latest_step() == 4


def test_checkpoint_of_another_network_is_not_taken_for_broken(copy):
  other = small_config(model__depth=3)
  run_config.save(other, copy)
  with pytest.raises(ValueError, match="of another network"):
    LuminaPipeline.from_workdir(copy)
  assert (copy / "checkpoints" / "6").exists()


def test_sizes_and_prompts(workdir, tmp_path):
  words = [f"--workdir={workdir}", f"--output={tmp_path}"]
  message = fail("sample", *words, "--prompt=7", "--height=10")
  assert "height=10" in message and "patch size" in message
  message = fail("sample", *words, "--prompt=7", "--width=8000")
  assert "largest rung" in message
  assert "no prompt" in fail("sample", *words)


def test_output_that_cannot_be_written(workdir, tmp_path):
  (tmp_path / "file").write_text("")
  output = tmp_path / "file" / "pictures"
  message = fail(
    "sample", f"--workdir={workdir}", "--prompt=7", f"--output={output}"
  )
  assert f"cannot write to {output}" in message


def test_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
  config = small_config(
    optimizer__learning_rate=1e30,
    optimizer__clip=1e30,
    training__checkpoint_every=1,
    training__max_skipped=3,
  )
  with pytest.raises(FloatingPointError, match="learning_rate"):
    training.train(config, epath.Path(tmp_path))
  params = LuminaPipeline.from_workdir(tmp_path).params
  assert np.isfinite(params["backbone"]["final"]["kernel"]).all()


def test_unknown_command_and_missing_prompt():
  assert "did you mean 'infer'" in fail("cli", "infre", "7")
  assert "usage: lumina infer" in fail("cli", "infer")


def test_idle_accelerator_is_announced(monkeypatch, capsys):
  platforms = jax.config.jax_platforms
  monkeypatch.setattr(
    entry_point.glob, "glob", lambda p: ["x"] if "nvidia" in p else []
  )
  entry_point.warn_of_idle_accelerator()
  assert not capsys.readouterr().err  # JAX_PLATFORMS=cpu asks for it.
  jax.config.update("jax_platforms", None)
  try:
    entry_point.warn_of_idle_accelerator()
  finally:
    jax.config.update("jax_platforms", platforms)
  printed = capsys.readouterr().err
  assert "NVIDIA GPU" in printed and ".[cuda]" in printed
