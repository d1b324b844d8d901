"""Stages: one network at growing sizes, each started from the one before."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.photographs import write_photographs

from configs import stages
from lumina_jax.model.network import Network
from lumina_jax.runs import init_from
from lumina_jax.train import train
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
  # About 512 images, in rows of equal length whatever their size.
  images = plan.batch_rows * 16 * 256**2 / int(side) ** 2
  assert images == stages.IMAGES
  first = run_config.parse(stages.get_config(f"{model}_256"))
  same = Network(first.model, first.text_encoder)
  assert Network(config.model, config.text_encoder) == same
  assert config.seed == {"256": 0, "512": 2, "1024": 3}[side]


def test_an_unknown_stage_is_named():
  with pytest.raises(ValueError, match="'next_2b_333'"):
    stages.get_config("next_2b_333")


@pytest.mark.e2e
def test_a_stage_starts_from_the_one_before(tmp_path):
  images = write_photographs(tmp_path / "images", 12)
  last = None
  for side, source in ((16, ""), (32, str(tmp_path / "16"))):
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
      init_from=source,
      data=dataclasses.replace(config.data, sources=(str(images),)),
      training=plan,
      sampling=dataclasses.replace(config.sampling, num_inference_steps=2),
    )
    if source:
      for path, array in init_from.resolve(config.network, source):
        value = last.ema
        for key in path:
          value = value[key]
        np.testing.assert_array_equal(array, value)
    last = train(config, epath.Path(tmp_path / str(side)))
    rows = metrics.read(tmp_path / str(side))
    assert len(rows) == 4 and rows[-1]["loss"] is not None
    sheet = Image.open(tmp_path / str(side) / "samples" / "step_000004.png")
    assert sheet.width > 2 * side
  assert jax.tree.leaves(last.params)
