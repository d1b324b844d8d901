"""Configs of sources refuse values out of range, naming them."""

import dataclasses

import pytest

from configs import digits, text_to_image
from data_pipelines.captioned import CaptionedConfig
from data_pipelines.digits import DigitsConfig
from data_pipelines.source_config import LoaderOptions
from data_pipelines.synthetic import SyntheticConfig

CONFIGS = {
  "digits": DigitsConfig(**digits.get_config().data),
  "synthetic": SyntheticConfig(**text_to_image.get_config("tiny").data),
  "captioned": CaptionedConfig(
    sources=("a", "b"),
    resolutions=[256],
    row_tokens=8,
    row_words=4,
    row_samples=2,
  ),
}


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("digits", dict(caption_dropout=1.5), "caption_dropout = 1.5"),
    ("digits", dict(held_out=0), "held_out = 0"),
    ("digits", dict(held_out=1), "held_out = 1"),
    ("digits", dict(origins=(1,)), "origins"),
    ("synthetic", dict(sizes=()), "sizes"),
    ("synthetic", dict(sizes=((8, 8), (8,))), "as many axes"),
    ("synthetic", dict(classes=0), "classes = 0"),
    ("synthetic", dict(records_per_size=0), "records_per_size = 0"),
    ("synthetic", dict(condition_dropout=1.5), "condition_dropout = 1.5"),
    ("synthetic", dict(signal=-0.1), "signal = -0.1"),
    ("synthetic", dict(caption="pattern"), "caption 'pattern'"),
    ("captioned", dict(sources=()), "at least one folder"),
    ("captioned", dict(sources=(3,)), "in quotes if its name is a number"),
    ("captioned", dict(weights=(1.0,)), "of 2 sources: one for each"),
    ("captioned", dict(weights=(1.0, 0.0)), "must be positive"),
    ("captioned", dict(condition_dropout=-1), "condition_dropout = -1"),
    ("captioned", dict(bad_limit=2), "bad_limit = 2"),
    ("captioned", dict(bucket_choices=0), "bucket_choices = 0"),
    ("captioned", dict(threads=0), "threads = 0"),
    ("captioned", dict(workers=-1), "workers = -1"),
  ],
)
def test_values_out_of_range_are_refused(name, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIGS[name], **change)


def test_budget_loader_and_limit_of_each_config():
  for cfg in CONFIGS.values():
    assert cfg.budget == (cfg.row_tokens, cfg.row_words, cfg.row_samples)
  assert CONFIGS["digits"].loader == LoaderOptions()
  assert CONFIGS["digits"].bad_limit == 1
  assert CONFIGS["captioned"].loader == LoaderOptions(threads=2)
  assert CONFIGS["captioned"].resolutions == (256,)
