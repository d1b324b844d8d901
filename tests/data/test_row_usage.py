"""Rows are full: images of mixed shapes, under the budgets of the configs."""

import numpy as np
import pytest

from configs import stages
from data_pipelines.buckets import Buckets
from data_pipelines.captioned import CaptionedConfig
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.records import Record
from data_pipelines.row_plan import RowPlan
from lumina_jax.backbone import ModelConfig

# Photographs are 3:2, 4:3, 1:1, 16:9 and the like; some have any shape.
RATIOS = (3 / 2, 2 / 3, 4 / 3, 3 / 4, 1.0, 16 / 9, 9 / 16, 2.0)


def records(count, seed=0):
  rng = np.random.default_rng(seed)
  ratios = np.where(
    rng.random(count) < 0.7,
    rng.choice(RATIOS, count),
    np.exp(rng.uniform(-1.3, 1.3, count)),
  )
  for number, ratio in enumerate(ratios):
    height = int(rng.integers(1200, 3000))
    words = " ".join(["word"] * int(rng.integers(5, 120)))
    yield Record(f"{number}.jpg", (words,), height, round(height * ratio))


def source(variant, count):
  """The source of images of a config, and its budget."""
  config = stages.get_config(variant)
  data, model = CaptionedConfig(**config.data), ModelConfig(**config.model)
  factor, unit = 8, 16
  cfg = ImageSourceConfig(3, data.bucket_choices, 0.1, False, 256)
  images = ImageSource(
    tuple(records(count)),
    Buckets(data.resolutions, unit, data.max_aspect_ratio),
    lambda h, w: model.grid(h // factor, w // factor),
    lambda caption: np.zeros((len(caption.split()) or 1, 1)),
    cfg,
    seed=0,
  )
  return images, data.budget


@pytest.mark.parametrize(
  "variant",
  ["next_2b_gqa_256", "next_2b_gqa_1024", "flag_5b_512"],
)
def test_rows_hold_at_least_95_percent_tokens(variant):
  images, budget = source(variant, 2000)
  plan = RowPlan(images.sizes, budget, 0, images.kinds)
  used = sum(size[0] for size in images.sizes)
  assert used >= 0.95 * budget[0] * plan.rows_per_epoch
  for epoch in (0, 5):
    start = epoch * plan.rows_per_epoch
    for k in range(start, start + plan.rows_per_epoch):
      held = np.sum([images.sizes[d.slot] for d in plan.row(k)], axis=0)
      assert (held <= budget).all()


def test_an_image_is_cropped_to_several_shapes():
  images, budget = source("next_2b_gqa_256", 600)
  plan = RowPlan(images.sizes, budget, 0, images.kinds)
  shapes: dict[int, set] = {}
  for k in range(8 * plan.rows_per_epoch):
    for draw in plan.row(k):
      shapes.setdefault(draw.record, set()).add(images.buckets[draw.slot])
  assert np.mean([len(sizes) > 1 for sizes in shapes.values()]) > 0.5
