"""User errors: a clear message, no traceback, exit code 1, nothing lost."""

import jax
import pytest
from etils import epath
from support.configs import small_config
from support.zygote import fork

from lumina_jax.commands import start as entry_point
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import workdir as workdirs
from lumina_jax.train import train
from lumina_jax.training import run_config

DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
  ("words", "messages"),
  [
    (("train", DIGITS, "--config.training.setps=3"), ("setps",)),
    (("train", f"{DIGITS}:nxet"), ("unknown variant 'nxet'", "'next'")),
    (("train", "--config=configs/nothing.py"), ("configs/nothing.py",)),
    (("sample", "--prompt=7"), ("no config.json", "train")),
    (
      ("infer", "7", "--guidance_scale=x"),
      ("error: --guidance_scale = 'x': must be a finite number",),
    ),
    (("cli", "infre", "7"), ("did you mean 'infer'",)),
    (("cli", "infer"), ("usage: lumina infer",)),
  ],
  ids=lambda words: " ".join(words),
)
def test_a_command_fails_with_one_message(words, messages, tmp_path):
  module, *rest = words
  if module != "cli":
    rest.append(f"--workdir={tmp_path / 'run'}")
  if module == "sample":
    rest.append(f"--output={tmp_path / 'samples'}")
  done = fork(module, *rest)
  assert done.returncode in (1, 2), done.stderr
  assert "Traceback" not in done.stderr
  for message in messages:
    assert message in done.stderr
  assert not (tmp_path / "run" / run_config.FILE).exists()


def test_a_workdir_needs_a_config_and_a_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no config\.json.*train"):
    workdirs.load(tmp_path)
  run_config.save(small_config(), tmp_path)
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    workdirs.load(tmp_path)


@pytest.mark.usefixtures("shared_programs")
def test_a_run_continues_with_another_config_only_if_allowed(run_copy):
  before = run_config.load(run_copy)
  other = small_config(optimizer__learning_rate=0.5, training__steps=8)
  with pytest.raises(ValueError, match="allow_config_change") as error:
    workdirs.claim(other, run_copy, allow_change=False)
  assert "optimizer.learning_rate: 0.002 -> 0.5" in str(error.value)
  assert "training.steps: 6 -> 8" in str(error.value)
  assert run_config.load(run_copy) == before
  longer = small_config(training__steps=8)
  folder = workdirs.claim(longer, run_copy, allow_change=True)
  assert int(train(longer, folder).step) == 8
  assert run_config.load(run_copy) == longer


def test_a_change_that_cannot_continue_leaves_the_run_as_it_was(run_copy):
  before = run_config.load(run_copy)
  folder = epath.Path(run_copy)
  for change, message in (
    (dict(model__depth=3), "of another network"),
    (dict(training__steps=4), r"past training\.steps = 4"),
  ):
    other = small_config(**change)
    workdirs.claim(other, folder, allow_change=True)
    with pytest.raises(ValueError, match=message):
      train(other, folder)
    assert run_config.load(folder) == before
  assert LuminaPipeline.from_workdir(folder).params


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(training__sample_prompts=("7" * 200,)), "sample_prompts.*largest"),
    (dict(data__row_words=4), "raise data.row_tokens or data.row_words"),
    (dict(training__steps=2), "warmup_steps = 2 must be below"),
    (dict(optimizer__frozen=("backbne",)), "'backbne' matches none"),
    (dict(init_from="nowhere"), "nowhere"),
  ],
)
def test_configs_that_cannot_work_fail_at_the_start(tmp_path, changes, message):
  source = {k: changes[k] for k in changes if k == "init_from"}
  changes = {k: v for k, v in changes.items() if k not in source}
  config = small_config(**changes)
  if source:
    config = type(config)(**vars(config) | source)
  with pytest.raises((ValueError, OSError), match=message):
    train(config, epath.Path(tmp_path))
  assert not (tmp_path / run_config.FILE).exists()


def test_an_idle_accelerator_is_announced(monkeypatch, capsys):
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
