"""Published networks: every variant builds, with its data and its recipe."""

import dataclasses
import math

import jax
import pytest

from configs import imagenet, text_to_image, text_to_video
from lumina_jax.backbone import shapes
from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.training.data import make_source
from lumina_jax.training.run_config import load, parse, save

FAMILIES = (imagenet, text_to_image, text_to_video)
every_published = pytest.mark.parametrize(
  ("family", "variant"),
  [(family, variant) for family in FAMILIES for variant in family.MODELS],
)


def is_published(family, variant) -> bool:
  """No network for video has been published, and no wide one for images."""
  wide = family is text_to_image and variant == "flag_7b"
  return variant != "tiny" and family is not text_to_video and not wide


def parameters(model) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes(model)))


@every_published
def test_published_networks_build_and_come_back_equal(
  family, variant, tmp_path
):
  run = parse(family.get_config(variant))
  assert run.model == family.MODELS[variant]
  assert (run.model in PUBLISHED.values()) == is_published(family, variant)
  save(run, tmp_path)
  assert load(tmp_path) == run
  shapes = run.network.shapes()
  text = {"text_encoder"} if run.model.text_width else set()
  assert shapes.keys() == {"backbone"} | text
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert (count < 1e6) == (variant == "tiny")


def test_the_widest_text_network_has_8_4_billion_parameters():
  """Width and depth of the published 7B, text of the published 5B."""
  model = text_to_image.MODELS["flag_7b"]
  assert parameters(model) == 8_371_077_136
  of_classes = PUBLISHED["flag_dit_imagenet_7b"]
  for name in ("width", "depth", "heads", "kv_heads", "cond_width"):
    assert getattr(model, name) == getattr(of_classes, name)
  of_text = PUBLISHED["flag_dit_t2i_5b"]
  assert dataclasses.replace(model, width=of_text.width) == of_text
  run = parse(text_to_image.get_config("flag_7b"))
  assert run.text_encoder.max_words == 256


@pytest.mark.parametrize("variant", ["flag_5b", "flag_7b", "next_2b"])
def test_video_networks_differ_by_a_third_axis(variant):
  of_images = text_to_image.MODELS[variant]
  model = text_to_video.MODELS[variant]
  assert dataclasses.replace(model, patch=(2, 2)) == of_images
  flag = variant != "next_2b"
  assert model.position_axes == (1 if flag else 3)
  # Of Flag-DiT, the nextframe token.
  more = model.width if flag else 0
  assert parameters(model) == parameters(of_images) + more
  # Channel pairs of a head share out among frame, row and column.
  assert flag or model.head_dim // 2 % 3 == 0


@pytest.mark.parametrize("variant", ["flag_7b", "next_2b"])
def test_rows_of_videos_divide_over_many_devices(variant):
  run = parse(text_to_video.get_config(variant))
  assert run.data.row_tokens % (128 * 8) == 0
  frames = {size[0] for size in run.data.sizes}
  assert len(frames) > 1 and (32, 64, 64) in run.data.sizes
  # 128 frames, of the size that 32 of are trained, still fit the ladder.
  longest = run.model.grid(128, 64, 64).num_tokens
  assert run.data.row_tokens < longest <= run.sizes.ladder[-1][0]


@every_published
def test_published_data_fill_their_rows(family, variant):
  run = parse(family.get_config(variant))
  sizes = make_source(run).sizes
  tokens, words, samples = (max(s) for s in zip(*sizes, strict=True))
  each = run.data.row_samples
  if family is text_to_video:  # Rounded up, to divide over devices.
    assert tokens * each <= run.data.row_tokens
  else:
    assert tokens * each == run.data.row_tokens
  assert words * each <= run.data.row_words
  used = sum(s[0] for s in sizes) / len(sizes) * each
  assert used >= 0.93 * run.data.row_tokens
  prompts = run.training.sample_prompts
  assert all(len(run.network.tokenize(prompt)) for prompt in prompts)


@every_published
def test_published_recipes(family, variant):
  """As in the launch scripts of the original; video as in the paper."""
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
    of_images = 512 if variant in ("flag_5b", "flag_7b") else 256
    assert images == (1024 if family is text_to_video else of_images)
    assert config.time.name == "uniform"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_published_variant_is_refused(family):
  with pytest.raises(ValueError, match=r"'next_600b': use one of .*'tiny'"):
    family.get_config("next_600b")
