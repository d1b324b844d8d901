"""Flags set keys that a config file leaves out, like those that it has."""

import pytest
from support.zygote import fork

# A file of a user, which lists less than those of configs/.
OWN = """
from configs import digits

def get_config():
  config = digits.get_config()
  del config.init_from
  del config.objective
  return config
"""


@pytest.fixture
def own(tmp_path):
  path = tmp_path / "own.py"
  path.write_text(OWN)
  return str(path)


@pytest.mark.parametrize(
  ("module", "override", "message"),
  [
    ("train", "objective.path=linaer", "'linear'"),
    ("plan", "optimizer.momentum=1", "momentum = 1.0: must be at least 0"),
    ("train", "encoders.va=a", 'Did you mean "vae"'),
  ],
)
def test_every_key_can_be_set_and_mistakes_are_named(
  own, tmp_path, module, override, message
):
  words = [f"--config={own}", f"--config.{override}"]
  if module == "train":
    words.append(f"--workdir={tmp_path / 'run'}")
  else:
    words.append("--topology=cpu:1")
  done = fork(module, *words)
  assert done.returncode in (1, 2), done.stderr
  assert "Traceback" not in done.stderr and message in done.stderr
