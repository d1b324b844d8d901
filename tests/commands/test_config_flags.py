"""Keys that a config file leaves out are set like those that it lists."""

import pytest
from support.forks import fork

# A file of a user's own, which lists still less than those of configs/.
OWN = """
from configs import digits

def get_config():
  config = digits.get_config()
  del config.init_from
  del config.objective
  return config
"""


def said(module: str, config: str, *words) -> str:
  """What a command prints that must fail before it does any work."""
  done = fork(module, f"--config={config}", *words)
  assert done.returncode in (1, 2), done.stderr
  assert "Traceback" not in done.stderr, done.stderr
  return done.stderr


@pytest.fixture
def own(tmp_path):
  path = tmp_path / "own.py"
  path.write_text(OWN)
  return str(path)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("training.microbatches=3", "do not divide into microbatches = 3"),
    ("training.watchdog_seconds=-1", "watchdog_seconds = -1.0"),
    ("optimizer.name=moun", "name 'moun': use 'adamw' or 'muon'"),
    ("optimizer.frozen=('backbone/(',)", "'backbone/('"),
    ("objective.path=linaer", "'linear'"),
    ("init_from=nowhere", "nowhere"),
  ],
)
def test_training_takes_what_a_file_leaves_out(
  own, tmp_path, override, message
):
  words = [f"--workdir={tmp_path / 'run'}", f"--config.{override}"]
  assert message in said("train", own, *words)


def test_planning_takes_it_too():
  words = ["--topology=cpu:1", "--config.optimizer.momentum=1"]
  message = said("plan", "configs/imagenet.py:tiny", *words)
  assert "momentum = 1.0: from 0, below 1" in message


@pytest.mark.parametrize(
  ("override", "near"),
  [
    ("training.max_skiped=3", "max_skipped"),
    ("optimizer.forzen=a", "frozen"),
    ("init_stric=False", "init_strict"),
    ("encoders.va=a", "vae"),
  ],
)
def test_a_mistyped_key_names_the_nearest(own, tmp_path, override, near):
  words = [f"--workdir={tmp_path / 'run'}", f"--config.{override}"]
  message = said("train", own, *words)
  assert override.partition("=")[0].rpartition(".")[2] in message
  assert f'Did you mean "{near}"' in message
