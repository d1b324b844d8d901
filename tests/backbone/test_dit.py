"""Properties of the backbone that hold for any parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.backbone import PUBLISHED, DiT, ModelConfig, shapes
from lumina_jax.packing import pack, stack
from lumina_jax.tokens import Condition

FLAG = ModelConfig(
  patch=(2, 2),
  channels=1,
  width=32,
  depth=3,
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
NEXT = dataclasses.replace(FLAG, **NEXT_FIELDS)
VIDEO = dataclasses.replace(FLAG, patch=(1, 2, 2))
SIZES = ((4, 8), (8, 4), (4, 4))
WORDS = (2, 3, 1)


def sample(cfg, size, words, seed):
  """One random sample: layout, patches, text, time."""
  rng = np.random.default_rng(seed)
  size = size if len(cfg.patch) == 2 else (2, *size)
  grid = cfg.grid(*size)
  x = rng.normal(size=(*size, cfg.channels)).astype(np.float32)
  text = rng.normal(size=(words, cfg.text_width)).astype(np.float32)
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


def random_params(cfg, seed=0):
  """Parameters none of which is zero, so that nothing is hidden by a gate."""
  batch = rows(cfg, [[sample(cfg, SIZES[0], 2, 0)]], 40, 4, 1)
  boxed = jax.eval_shape(DiT(cfg).init, jax.random.key(0), *batch)
  leaves, tree = jax.tree.flatten(nn.unbox(boxed))
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten(
    0.2 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  )


@functools.partial(jax.jit, static_argnums=0)
def velocity(cfg, params, tokens, condition):
  return DiT(cfg).apply(params, tokens, condition)


@functools.partial(jax.jit, static_argnums=0)
def initial(cfg, tokens, condition):
  return nn.unbox(DiT(cfg).init(jax.random.key(0), tokens, condition))


def alone(cfg, params, one):
  """Velocity patches of one sample in a row without padding."""
  grid, _, text, _ = one
  batch = rows(cfg, [[one]], grid.num_tokens, len(text), 1)
  return np.asarray(velocity(cfg, params, *batch))[0]


@pytest.mark.parametrize(
  "cfg",
  [FLAG, NEXT, pytest.param(VIDEO, marks=pytest.mark.slow)],
  ids=["flag", "next", "3d"],
)
def test_velocity_is_exactly_zero_at_init(cfg):
  batch = rows(cfg, [[sample(cfg, SIZES[0], 2, 0)]], 40, 4, 1)
  params = initial(cfg, *batch)
  assert not np.any(velocity(cfg, params, *batch))


@pytest.mark.parametrize("cfg", [FLAG, NEXT, VIDEO], ids=["flag", "next", "3d"])
def test_packing_and_padding_change_nothing(cfg):
  params = random_params(cfg)
  samples = [
    sample(cfg, size, words, i)
    for i, (size, words) in enumerate(zip(SIZES, WORDS, strict=True))
  ]
  groups = [[samples[0]], [samples[1], samples[2]]]
  batch = rows(cfg, groups, 64, 9, slots=4)
  packed = np.asarray(velocity(cfg, params, *batch))
  for row, group in zip(packed, groups, strict=True):
    start = 0
    for one in group:
      stop = start + one[0].num_tokens
      want = alone(cfg, params, one)
      assert np.abs(want).max() > 0.1
      np.testing.assert_allclose(row[start:stop], want, atol=2e-5)
      start = stop
    assert not np.any(row[start:])


def test_order_of_samples_in_a_row_changes_nothing():
  params = random_params(NEXT)
  a, b = (sample(NEXT, SIZES[i], WORDS[i], i) for i in range(2))
  one, other = (
    np.asarray(velocity(NEXT, params, *rows(NEXT, [pair], 20, 6, 2)))[0]
    for pair in ([a, b], [b, a])
  )
  cut = a[0].num_tokens
  np.testing.assert_allclose(one[:cut], other[-4 - cut : -4], atol=2e-5)


@pytest.mark.parametrize("change", [{"unroll": 3}, {"remat": False}])
def test_scan_and_remat_change_neither_value_nor_gradient(change):
  params = random_params(FLAG)
  batch = rows(FLAG, [[sample(FLAG, SIZES[0], 2, 0)]], 24, 4, 1)

  def loss(params, cfg):
    return jnp.sum(DiT(cfg).apply(params, *batch) ** 2)

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  plain = run(params, FLAG)
  other = run(params, dataclasses.replace(FLAG, **change))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    plain,
    other,
  )


def test_bfloat16_stays_near_float32():
  params = random_params(NEXT)
  batch = rows(NEXT, [[sample(NEXT, SIZES[0], 2, 0)]], 12, 4, 1)
  exact = DiT(NEXT).apply(params, *batch)
  rough = DiT(dataclasses.replace(NEXT, dtype="bfloat16")).apply(params, *batch)
  assert rough.dtype == jnp.float32
  error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
  assert 0 < error < 3e-2


def test_text_time_and_position_each_matter():
  params = random_params(FLAG)
  one = sample(FLAG, SIZES[0], 2, 0)
  plain = alone(FLAG, params, one)
  other_text = (*one[:2], one[2] + 1, one[3])
  other_time = (*one[:3], np.float32(1 - one[3]))
  for changed in (other_text, other_time):
    assert np.abs(alone(FLAG, params, changed) - plain).max() > 1e-3
  tokens, condition = rows(FLAG, [[one]], one[0].num_tokens, 2, 1)
  moved = tokens._replace(ids=tokens.ids[:, ::-1])
  turned = velocity(FLAG, params, moved, condition)
  assert np.abs(np.asarray(turned)[0] - plain).max() > 1e-3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=5), "width = 32 is not divisible by heads=5"),
    (dict(kv_heads=3), "heads = 4 is not divisible by kv_heads=3"),
    (dict(dtype="float16"), "float16"),
    (dict(text_width=0), "nothing to condition on"),
  ],
)
def test_impossible_config_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(FLAG, **change)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(routing=("space",), experts=4), "routing .'space'.*'token'"),
    (dict(experts=4), "experts = 4 with routing"),
    (dict(routing=("time",)), "experts = 0 with routing"),
    (dict(routing=("time",), experts=1), "active_experts = 2.*experts = 1"),
  ],
)
def test_impossible_experts_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(FLAG, **change)


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
  """The heads of image networks there also emit a sigma that nothing reads."""
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
