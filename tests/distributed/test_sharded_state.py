"""Sharded states: initial weights, Muon, groups, frozen parameters."""

import jax
import numpy as np
import pytest
from support.configs import randomised, tiny_config
from support.fake_devices import SCRIPTS, lines, result, run, run_all

from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState

pytestmark = pytest.mark.e2e


def test_eight_devices_update_like_one(tmp_path):
  one, eight = result(run(8, SCRIPTS / "sharded_optimizer.py", tmp_path))
  for found in (one, eight):
    assert found["alike"] and found["restored"] and found["frozen"]
  assert one["moments"] == eight["moments"]
  assert eight["sum"] == pytest.approx(one["sum"], rel=1e-6)


@pytest.mark.long
def test_two_processes_start_from_the_weights_of_a_run(tmp_path):
  config = tiny_config("text_to_image")
  run_config.save(config, tmp_path)
  ema = jax.device_get(randomised(config).params)
  state = dict.fromkeys(TrainState._fields, np.int32(7))
  state |= dict(params=ema, ema=ema, opt_state={"m": np.zeros(3)})
  saved = Checkpoints(tmp_path, 1)
  saved.save(TrainState(**state))
  saved.close()
  first, second = run_all(2, 2, SCRIPTS / "initial_weights.py", tmp_path)
  results = [result(text) for text in (first, second)]
  assert results[0] == results[1]
  assert results[0]["alike"] and results[0]["taken"] == 19
  assert results[0]["sharded"] > 10
  assert "model.depth = 3, but 2 in the source" in first
  assert len(lines(second)) == 1
