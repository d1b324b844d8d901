"""Rows are full: pictures of mixed shapes, under the budgets of the configs."""

import numpy as np
import pytest

from configs import stages
from data_pipelines.buckets import Buckets
from data_pipelines.images import Images, ImagesConfig
from data_pipelines.plan import RowPlan
from data_pipelines.records import Record
from lumina_jax.training import run_config

# Of photographs: 3:2, 4:3, 1:1, 16:9 and the like, and some of any shape.
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


def source(config, count):
  data, factor, unit = config.data, 8, 16
  cfg = ImagesConfig(3, data.choices, 0.1, False, 256)
  return Images(
    tuple(records(count)),
    Buckets(data.sides, unit, data.longest),
    lambda h, w: config.model.grid(h // factor, w // factor),
    lambda caption: np.zeros((len(caption.split()) or 1, 1)),
    cfg,
    seed=0,
  )


@pytest.mark.parametrize(
  "variant",
  [f"{m}_{s}" for m in ("next_2b_gqa", "flag_5b") for s in (256, 512, 1024)],
)
def test_rows_hold_at_least_95_percent_tokens(variant):
  config = run_config.parse(stages.get_config(variant))
  pictures = source(config, 3000)
  budget = config.data.budget
  plan = RowPlan(pictures.sizes, budget, 0, pictures.kinds)
  used = sum(size[0] for size in pictures.sizes)
  assert used >= 0.95 * budget[0] * plan.rows_per_epoch
  for epoch in (0, 5):
    start = epoch * plan.rows_per_epoch
    for k in range(start, start + plan.rows_per_epoch):
      held = np.sum([pictures.sizes[d.place] for d in plan.row(k)], axis=0)
      assert (held <= budget).all()


def test_a_picture_is_seen_in_several_shapes():
  config = run_config.parse(stages.get_config("next_2b_gqa_256"))
  pictures = source(config, 600)
  plan = RowPlan(pictures.sizes, config.data.budget, 0, pictures.kinds)
  shapes: dict[int, set] = {}
  for k in range(8 * plan.rows_per_epoch):
    for draw in plan.row(k):
      shapes.setdefault(draw.record, set()).add(pictures.own[draw.place])
  assert np.mean([len(found) > 1 for found in shapes.values()]) > 0.5
