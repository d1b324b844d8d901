"""Properties of the backbone that hold for any parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.backbone import PUBLISHED, DiT, ModelConfig, shapes
from lumina_jax.backbone.attention import TextProjections
from lumina_jax.backbone.cache import TextCache, text_cache
from lumina_jax.packing import pack, stack
from lumina_jax.tokens import Condition

FLAG = ModelConfig(
  patch=(2, 2),
  channels=1,
  width=32,
  depth=2,
  heads=4,
  kv_heads=2,
  cond_width=32,
  text_width=16,
  pad_token=True,
  ffn_multiple=32,
  dtype="float32",
)
NEXT_FIELDS = dict(
  raster=False,
  separators=False,
  sandwich=True,
  shift=False,
  tanh_gate=True,
  final_shift=False,
)
NEXT = dataclasses.replace(FLAG, **NEXT_FIELDS, text_query=True)
VIDEO = dataclasses.replace(FLAG, patch=(1, 2, 2))
SIZES = ((4, 8), (8, 4), (4, 8))
WORDS = (2, 3, 2)


def sample(cfg, number):
  """One random sample: layout, patches, text, time."""
  rng = np.random.default_rng(number)
  size = SIZES[number] if len(cfg.patch) == 2 else (2, *SIZES[number])
  grid = cfg.grid(*size)
  x = rng.normal(size=(*size, cfg.channels)).astype(np.float32)
  text = rng.normal(size=(WORDS[number], cfg.text_width)).astype(np.float32)
  return grid, grid.tokenize(x), text, np.float32(rng.random())


def rows(cfg, groups, length, words, slots):
  """Rows of samples as (tokens, condition)."""
  tokens, texts, segments, times = [], [], [], []
  for group in groups:
    grids, patches, features, time = zip(*group, strict=True)
    tokens.append(
      pack(grids, patches, length, cfg.patch_dim, cfg.position_axes)
    )
    text = np.zeros((words, cfg.text_width), np.float32)
    segment = np.zeros(words, np.int32)
    used = 0
    for number, feature in enumerate(features, start=1):
      text[used : used + len(feature)] = feature
      segment[used : used + len(feature)] = number
      used += len(feature)
    texts.append(text)
    segments.append(segment)
    times.append(np.pad(np.asarray(time), (0, slots - len(time))))
  condition = Condition(
    time=np.stack(times), text=np.stack(texts), text_segments=np.stack(segments)
  )
  return stack(tokens), condition


def single(cfg, one=None):
  """One sample in a row without padding."""
  one = one or sample(cfg, 0)
  return rows(cfg, [[one]], one[0].num_tokens, len(one[2]), 1)


def packed(cfg):
  """Three rows, the last two of which hold the same samples in two orders."""
  samples = [sample(cfg, number) for number in range(3)]
  groups = [samples[:1], samples[1:], samples[:0:-1]]
  return groups, rows(cfg, groups, 64, 9, slots=4)


@functools.cache
def random_params(cfg):
  """Parameters none of which is zero, so that no gate hides anything."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes(cfg)
  )


@functools.partial(jax.jit, static_argnums=0)
def velocity(cfg, params, tokens, condition):
  return DiT(cfg).apply({"params": params}, tokens, condition)


@functools.partial(jax.jit, static_argnums=0)
def cached_velocity(cfg, params, tokens, condition):
  samples = condition.time.shape[1]
  text = text_cache(cfg, params, condition, samples)
  condition = condition._replace(text=None)
  return DiT(cfg).apply({"params": params}, tokens, condition, text)


@functools.partial(jax.jit, static_argnums=(0, 1))
def velocity_and_gradient(function, cfg, params, batch):
  def loss(params):
    found = function(cfg, params, *batch)
    return jnp.sum(found**2), found

  gradient, found = jax.grad(loss, has_aux=True)(params)
  return found, gradient


def test_velocity_is_exactly_zero_at_init():
  batch = packed(NEXT)[1]
  key = jax.random.key(0, impl="rbg")  # Compiles in no time.
  params = nn.unbox(jax.jit(DiT(NEXT).init)(key, *batch))
  assert not np.any(velocity(NEXT, params["params"], *batch))


@pytest.mark.parametrize("cfg", [VIDEO, NEXT], ids=["video", "next"])
def test_packing_padding_and_order_change_nothing(cfg):
  params = random_params(cfg)
  groups, batch = packed(cfg)
  in_rows = []
  for row, group in zip(velocity(cfg, params, *batch), groups, strict=True):
    start = 0
    for grid, *_ in group:
      in_rows.append(np.asarray(row[start : start + grid.num_tokens]))
      start += grid.num_tokens
    assert not np.any(row[start:])
  first, a, b, b_again, a_again = in_rows
  alone, b_alone = (
    velocity(cfg, params, *single(cfg, sample(cfg, number)))[0]
    for number in (0, 2)  # Of one size; others recompile.
  )
  for found, expected in (
    (first, alone),
    (b, b_alone),
    (b_again, b_alone),
    (a_again, a),
  ):
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_unrolling_remat_and_cached_text_change_neither_value_nor_gradient():
  params, batch = random_params(NEXT), packed(NEXT)[1]
  other = dataclasses.replace(NEXT, unroll=2, remat="none")
  plain, plain_gradient = velocity_and_gradient(velocity, other, params, batch)
  cached, gradient = velocity_and_gradient(cached_velocity, NEXT, params, batch)
  np.testing.assert_allclose(cached, plain, rtol=1e-6, atol=1e-6)
  for a, b in zip(
    *map(jax.tree.leaves, (gradient, plain_gradient)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-6)
  text = gradient["blocks"]["attention"]["text_value"]["kernel"]
  assert np.abs(text).max() > 0.1


def test_text_projections_are_parameters_of_attention():
  text = jnp.zeros((1, 2, NEXT.text_width))
  init = jax.eval_shape(TextProjections(NEXT).init, jax.random.key(0), text)
  attention = shapes(NEXT)["blocks"]["attention"]
  found = nn.unbox(init)["params"]
  assert found.keys() <= attention.keys()
  for name, layer in found.items():
    stacked = jax.tree.map(lambda x: x.shape[1:], attention[name])
    assert jax.tree.map(lambda x: x.shape, layer) == stacked


def test_cached_text_has_the_dtype_of_products_and_rows_to_slice():
  condition = single(NEXT)[1]
  for dtype in ("float32", "bfloat16"):
    cfg = dataclasses.replace(NEXT, dtype=dtype)
    text = jax.eval_shape(
      lambda params, cfg=cfg: text_cache(cfg, params, condition, 1),
      shapes(cfg),
    )
    assert text.pooled.shape == (1, 1, 32) and text.pooled.dtype == jnp.float32
    for x in (text.keys, text.values):
      assert x.shape == (2, 1, 2, 2, 8) and x.dtype == dtype
  numbers = np.arange(48).reshape(2, 3, 2, 2, 2)
  first = TextCache(numbers[0], numbers, numbers).first(2)
  np.testing.assert_array_equal(first.pooled, numbers[0, :2])
  np.testing.assert_array_equal(first.keys, numbers[:, :2])


def test_a_network_of_classes_caches_no_text():
  cfg = dataclasses.replace(FLAG, text_width=0, num_labels=3)
  assert text_cache(cfg, shapes(cfg), Condition(), 1) is None


def test_bfloat16_stays_near_float32():
  params, batch = random_params(NEXT), single(NEXT)
  cfg = dataclasses.replace(NEXT, dtype="bfloat16")
  exact, rough = (velocity(c, params, *batch) for c in (NEXT, cfg))
  assert rough.dtype == jnp.float32
  error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
  assert 0 < error < 3e-2


def test_text_time_and_position_each_matter():
  params, (tokens, condition) = random_params(VIDEO), single(VIDEO)
  for changed in (
    (tokens, condition._replace(text=condition.text + 1)),
    (tokens, condition._replace(time=1 - condition.time)),
    (tokens._replace(ids=tokens.ids[:, ::-1]), condition),
  ):
    found = velocity(VIDEO, params, *changed)
    plain = velocity(VIDEO, params, tokens, condition)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(patch=(2, 0)), r"patch = \(2, 0\) must be positive sizes"),
    (dict(depth=0), "depth = 0: must be positive"),
    (dict(heads=5), "width = 32 is not divisible by heads = 5"),
    (dict(kv_heads=3), "heads = 4 is not divisible by kv_heads = 3"),
    (dict(heads=32, kv_heads=1), "width / heads = 1 must be even"),
    (dict(dtype="float16"), "dtype 'float16'.* use one of: float32, bfloat16"),
    (dict(remat="ful"), "remat 'ful'; did you mean 'full'.*offload_hidden"),
    (dict(remat=True), "remat True; use one of: none, full"),
    (dict(text_width=0), "text_width = 0 and num_labels = 0"),
    (dict(routing=("space",), experts=4), "routing .'space'.*'token'"),
    (dict(experts=4), "experts = 4 with routing"),
    (dict(routing=("time",)), "experts = 0 with routing"),
    (dict(routing=("time",), experts=1), "active_experts = 2.*experts = 1"),
  ],
)
def test_unsupported_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(FLAG, **changes)


COUNTS = {
  "flag_dit_t2i_5b": 5_046_643_744,
  "next_dit_t2i_2b": 1_988_524_576,
  "next_dit_t2i_2b_gqa": 1_627_386_400,
  "next_dit_t2i_2b_gqa_sd3": 1_627_718_272,
  "flag_dit_imagenet_600m": 609_836_576,
  "flag_dit_imagenet_3b": 4_237_824_032,
  "flag_dit_imagenet_7b": 7_293_819_936,
  "next_dit_imagenet_600m": 559_455_776,
  "next_dit_imagenet_2b": 1_763_043_104,
  "next_dit_imagenet_3b": 4_036_300_832,
  "next_dit_imagenet_7b": 7_025_122_336,
  "next_dit_moe_time_600m": 2_673_516_064,
  "next_dit_moe_time_600m_gqa": 2_616_856_096,
  "next_dit_moe_time_2b": 8_897_750_816,
  "next_dit_moe_token_600m": 2_673_581_600,
  "next_dit_moe_both_600m": 2_723_954_208,
  "flag_dit_audio": 197_940_244,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
  """The original's image networks also predict a sigma, which nothing reads."""
  cfg = PUBLISHED[name]
  ours = sum(leaf.size for leaf in jax.tree.leaves(shapes(cfg)))
  sigma = cfg.patch_dim * (cfg.width + 1) if len(cfg.patch) == 2 else 0
  assert ours == COUNTS[name] - sigma


def test_active_parameters_of_experts_are_the_published_ones():
  active = {
    "next_dit_moe_time_600m": 861_576_736,
    "next_dit_moe_token_600m": 861_642_272,
    "next_dit_moe_both_600m": 1_515_994_656,
  }
  for name, count in active.items():
    cfg = PUBLISHED[name]
    idle = len(cfg.routing) * (cfg.experts - cfg.active_experts)
    idle *= 3 * cfg.width * cfg.ffn_width * cfg.depth
    assert COUNTS[name] - idle == count
