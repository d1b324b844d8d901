"""States over several devices: how they begin, Muon, groups, what is frozen."""

import json

import jax
import numpy as np
import pytest
from support.configs import randomised, tiny_config
from support.fake_devices import HERE, start, start_two

from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState


def run(devices: int, folder) -> dict:
  printed = start(devices, HERE / "sharded_optimizer.py", folder)
  return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_eight_devices_update_as_one_does(tmp_path):
  one, eight = run(1, tmp_path / "one"), run(8, tmp_path / "eight")
  for found in (one, eight):
    assert found["alike"] and found["restored"] and found["frozen"]
  assert one["moments"] == eight["moments"]
  assert eight["sum"] == pytest.approx(one["sum"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_begin_with_the_weights_of_a_run(tmp_path):
  config = tiny_config("text_to_image")
  run_config.save(config, tmp_path)
  ema = jax.device_get(randomised(config).params)
  state = dict.fromkeys(TrainState._fields, np.int32(7))
  state |= dict(params=ema, ema=ema, opt_state={"m": np.zeros(3)})
  saved = Checkpoints(tmp_path, 1)
  saved.save(TrainState(**state))
  saved.close()
  first, second = start_two(2, HERE / "begin_with.py", tmp_path)
  results = [json.loads(said.splitlines()[-1]) for said in (first, second)]
  assert results[0] == results[1]
  assert results[0]["alike"] and results[0]["taken"] == 19
  assert results[0]["cut"] > 10
  assert "model.depth = 3, but 2 in the source" in first
  assert "init_from" not in second
