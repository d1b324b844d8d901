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
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.train import train
from lumina_jax.training import metrics, run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state

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


def stage(side, images, **changes):
  """A stage of the tiny network, shortened."""
  config = run_config.parse(stages.get_config(f"tiny_{side}"))
  plan = dataclasses.replace(
    config.training,
    steps=2,
    batch_rows=4,
    log_every=1,
    checkpoint_every=2,
    sample_every=2,
    samples_per_prompt=1,
  )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sources=(str(images),)),
    training=plan,
    sampling=dataclasses.replace(config.sampling, num_inference_steps=2),
    **changes,
  )


@pytest.mark.e2e
def test_a_stage_starts_from_the_one_before(tmp_path):
  """With Muon, and the text encoder of the first stage frozen."""
  images = write_photographs(tmp_path / "images", 12)
  folders = [epath.Path(tmp_path / name) for name in ("first", "second")]
  before = train(stage(16, images), folders[0])
  optimizer = dataclasses.replace(
    stage(32, images).optimizer,
    warmup_steps=0,
    name="muon",
    frozen=("^text_encoder/",),
  )
  second = stage(32, images, init_from=str(folders[0]), optimizer=optimizer)
  after = train(second, folders[1])
  for tree in (after.params, after.ema):
    jax.tree.map(
      np.testing.assert_array_equal,
      tree["text_encoder"],
      before.ema["text_encoder"],
    )
  change = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - b).max(),
    after.params["backbone"]["blocks"]["feed_forward"],
    before.ema["backbone"]["blocks"]["feed_forward"],
  )
  assert all(0 < x < 0.1 for x in jax.tree.leaves(change))
  for folder, side in zip(folders, (16, 32), strict=True):
    rows = metrics.read(folder)
    assert len(rows) == 2 and rows[-1]["loss"] is not None
    assert Image.open(folder / "samples/step_000002.png").width > 2 * side
  optimizer = make_optimizer(second.optimizer, 2)
  abstract = abstract_state(second.network, optimizer, make_mesh(second.mesh))
  with Checkpoints(folders[1], keep=1) as checkpoints:
    restored = checkpoints.restore(abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, after)
