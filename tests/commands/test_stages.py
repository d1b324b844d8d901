"""Stages: one network at growing sizes, each begun with the one before."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import stages
from lumina_jax import train as training
from lumina_jax.model.network import Network
from lumina_jax.training import metrics, run_config

PUBLISHED = [
  f"{model}_{side}" for model in stages.MODELS for side in stages.SIDES
]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_every_published_stage_is_a_config(variant):
  config = run_config.parse(stages.get_config(variant))
  model, side = variant.rpartition("_")[::2]
  plan = config.training
  assert config.data.resolutions == (int(side),)
  assert plan.batch_rows % plan.microbatches == 0
  # About 512 pictures, in rows of equal length whatever their size.
  pictures = plan.batch_rows * 16 * 256**2 / int(side) ** 2
  assert pictures == stages.PICTURES
  first = run_config.parse(stages.get_config(f"{model}_256"))
  same = Network(first.model, first.text_encoder)
  assert Network(config.model, config.text_encoder) == same
  assert config.seed == {"256": 0, "512": 2, "1024": 3}[side]


def test_an_unknown_stage_is_named():
  with pytest.raises(ValueError, match="'next_2b_333'"):
    stages.get_config("next_2b_333")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  for number, image in enumerate(load_sample_images().images):
    for part in range(12):
      y, x, height, width = (
        *rng.integers(200, size=2),
        *rng.integers(60, 200, 2),
      )
      cut = Image.fromarray(image[y : y + height, x : x + width])
      cut.save(folder / f"{number}_{part:02}.png")
      (folder / f"{number}_{part:02}.txt").write_text(f"photograph {number}")
  return folder


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_begins_with_the_one_before(pictures, tmp_path):
  ends = []
  for side, init_from in ((16, ""), (32, str(tmp_path / "16"))):
    config = run_config.parse(stages.get_config(f"tiny_{side}"))
    plan = dataclasses.replace(
      config.training,
      steps=4,
      batch_rows=4,
      log_every=1,
      checkpoint_every=4,
      sample_every=4,
      samples_per_prompt=1,
    )
    config = dataclasses.replace(
      config,
      init_from=init_from,
      data=dataclasses.replace(config.data, sources=(str(pictures),)),
      training=plan,
      sampling=dataclasses.replace(config.sampling, num_inference_steps=2),
    )
    if init_from:
      optimizer = training.make_optimizer(config.optimizer, 4)
      mesh = training.make_mesh(config.mesh)
      begun = training.first_state(config, optimizer, mesh)
      jax.tree.map(np.testing.assert_array_equal, begun.params, ends[-1].ema)
    ends.append(training.train(config, epath.Path(tmp_path / str(side))))
    rows = metrics.read(tmp_path / str(side))
    assert len(rows) == 4 and rows[-1]["loss"] is not None
    shown = Image.open(tmp_path / str(side) / "samples" / "step_000004.png")
    assert shown.width > 2 * side
