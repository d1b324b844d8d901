"""Published networks: every variant builds, with its data and its recipe."""

import math

import jax
import pytest

from configs import imagenet, text_to_image
from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.config import load, parse, save
from lumina_jax.train import make_source

every_published = pytest.mark.parametrize(
  ("family", "variant"),
  [(f, variant) for f in (imagenet, text_to_image) for variant in f.MODELS],
)


@every_published
def test_published_networks_build_and_come_back_equal(
  family, variant, tmp_path
):
  run = parse(family.get_config(variant))
  assert run.model == family.MODELS[variant]
  assert variant == "tiny" or run.model in PUBLISHED.values()
  save(run, tmp_path)
  assert load(tmp_path) == run
  shapes = run.network.shapes()
  text = {"text_encoder"} if run.model.text_width else set()
  assert shapes.keys() == {"backbone"} | text
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert (count < 1e6) == (variant == "tiny")


@every_published
def test_published_data_fill_their_rows(family, variant):
  run = parse(family.get_config(variant))
  sizes = make_source(run).sizes
  tokens, words, samples = (max(s) for s in zip(*sizes, strict=True))
  each = run.data.row_samples
  assert tokens * each == run.data.row_tokens
  assert words * each <= run.data.row_words
  used = sum(s[0] for s in sizes) / len(sizes) * each
  assert used >= 0.93 * run.data.row_tokens
  prompts = run.training.sample_prompts
  assert all(len(run.network.tokenize(prompt)) for prompt in prompts)


@every_published
def test_published_recipes(family, variant):
  """The numbers of the original's launch scripts."""
  config = family.get_config(variant)
  images = config.training.batch_rows * config.data.row_samples
  assert config.optimizer.clip == 2.0 and not config.optimizer.warmup_steps
  assert config.data.condition_dropout == 0.1
  if variant == "tiny":
    return
  assert config.optimizer.ema_decay == 0.9999
  assert config.optimizer.decay == "constant"
  if family is imagenet:
    assert config.optimizer.learning_rate == 5e-4 and images == 256
    assert config.time.name == "logit_normal"
  else:
    assert config.optimizer.learning_rate == 1e-4
    assert images == (512 if variant == "flag_5b" else 256)
    assert config.time.name == "uniform"


@pytest.mark.parametrize("family", [imagenet, text_to_image])
def test_an_unknown_published_variant_is_refused(family):
  with pytest.raises(ValueError, match=r"'next_600b': use one of .*'tiny'"):
    family.get_config("next_600b")
