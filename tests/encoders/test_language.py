"""A language model as a text encoder: dependencies of its features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.encoders.language import Norm, boxed_shapes, encode_tokens
from lumina_jax.encoders.language_config import NO_WINDOW, LanguageConfig

# All options of all families at once; 4.1 is 4.09375 in bfloat16.
CFG = LanguageConfig(
  vocab=29,
  width=16,
  depth=3,
  heads=4,
  kv_heads=2,
  head_dim=8,
  ffn_width=24,
  activation="gelu_tanh",
  norm_eps=1e-6,
  query_scale=0.4,
  norm_offset=1.0,
  embed_scale=4.1,
  score_cap=3.0,
  window=4,
  post_norms=True,
  qk_norm=True,
)
LAST = dataclasses.replace(CFG, hidden="last")
HALF = dataclasses.replace(CFG, dtype="bfloat16")
LENGTH = 12


@functools.cache
def parameters(cfg=CFG):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: 0.5 * rng.standard_normal(x.shape, np.float32),
    nn.unbox(boxed_shapes(cfg)),
  )


def features(tokens, segments=None, cfg=CFG, params=None):
  """Features of one row, padded to LENGTH: all rows share one program."""
  segments = np.ones(len(tokens)) if segments is None else segments
  rows = np.zeros((2, 1, LENGTH), np.int32)
  rows[0, 0, : len(tokens)], rows[1, 0, : len(tokens)] = tokens, segments
  params = parameters(cfg) if params is None else params
  out = encode_tokens(cfg, params, *rows)
  assert out.shape == (1, LENGTH, cfg.width) and out.dtype == jnp.float32
  return np.asarray(out)[0]


def assert_close(actual, expected):
  assert np.abs(expected).mean() > 0.1  # There is something to compare.
  np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-5)


A, B, C = [2, 7, 7, 1, 9, 28], [2, 5], [2, 11, 3, 20]


def test_packed_captions_are_as_alone():
  """Their positions in the row differ; only differences of positions matter."""
  row = features(A + B + C, [1] * 6 + [2] * 2 + [3] * 4)
  assert_close(row[:6], features(A)[:6])
  assert_close(row[6:8], features(B)[:2])
  assert_close(row[8:], features(C)[:4])


@pytest.mark.parametrize("cfg", [CFG, LAST], ids=["penultimate", "last"])
def test_padding_is_zero_and_masked(cfg):
  pad = [25, 26, 27]
  left = features(pad + A, [0] * 3 + [1] * 6, cfg)
  within = features(B + pad + C, [1] * 2 + [0] * 3 + [2] * 4, cfg)
  assert_close(left[3:9], features(A, cfg=cfg)[:6])
  assert_close(within[5:9], features(C, cfg=cfg)[:4])
  assert not left[:3].any() and not left[9:].any()
  assert not within[2:5].any()


def test_a_row_of_padding_is_zero():
  assert not features([3, 4], [0, 0], LAST).any()


def test_attention_is_causal():
  before, after = features(A), features([*A[:3], 4, 4, 4])
  assert_close(after[:3], before[:3])
  assert (np.abs(after[3:6] - before[3:6]).max(axis=1) > 1e-2).all()


def test_order_matters():
  first, second = features([2, 7, 9, 5]), features([2, 9, 7, 5])
  assert np.abs(first[3] - second[3]).max() > 1e-2


def reach(cfg) -> int:
  """Number of tokens of a row that change the features of the last one."""
  row = np.arange(3, 3 + LENGTH)
  whole = features(row, cfg=cfg)[-1]
  changes = []
  for position in range(LENGTH):
    other = row.copy()
    other[position] = 1
    change = np.abs(features(other, cfg=cfg)[-1] - whole).max()
    changes.append(change > 1e-6)
  assert changes == sorted(changes)  # The last ones, without a gap.
  return sum(changes)


def test_odd_layers_have_a_window_and_even_ones_none():
  assert reach(dataclasses.replace(CFG, depth=2)) == CFG.window
  assert reach(CFG) == LENGTH
  deep = dataclasses.replace(CFG, depth=4)
  assert deep.windows == (CFG.window, NO_WINDOW, CFG.window)
  assert dataclasses.replace(deep, window=0).windows == (NO_WINDOW,) * 3


def test_penultimate_is_the_input_of_the_last_layer():
  """A last layer that adds nothing leaves the final norm as the difference."""
  last = jax.tree.map(np.copy, parameters(LAST))
  for path in (("attention", "out"), ("feed_forward", "down")):
    last["blocks"][path[0]][path[1]]["kernel"][-1] = 0
  fewer = {
    "embed": last["embed"],
    "blocks": jax.tree.map(lambda x: x[:-1], last["blocks"]),
  }
  x = features(A, params=fewer)[:6]
  normed = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + CFG.norm_eps)
  normed *= 1 + last["final_norm"]["scale"]
  assert_close(features(A, cfg=LAST, params=last)[:6], normed)


def test_penultimate_has_no_parameters_of_the_last_layer():
  penultimate, last = parameters(), parameters(LAST)
  assert "final_norm" in last and "final_norm" not in penultimate
  layers = lambda p: {x.shape[0] for x in jax.tree.leaves(p["blocks"])}  # noqa: E731
  assert layers(last) == {3} and layers(penultimate) == {2}


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_is_its_equation(offset):
  rng = np.random.default_rng(0)
  x, scale = rng.standard_normal((2, 3, 16), np.float32), np.arange(16)
  cfg = dataclasses.replace(CFG, norm_offset=offset, norm_eps=0.1)
  square = (x * x).mean(axis=-1, keepdims=True)
  expected = x / np.sqrt(square + 0.1) * (offset + scale)
  actual = Norm(cfg).apply({"params": {"scale": scale}}, x)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_half_precision_is_close_and_is_half():
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), parameters())
  found, exact = features(A, cfg=HALF, params=params), features(A)
  error = np.abs(found - exact).mean() / np.abs(exact).mean()
  assert 1e-4 < error < 0.04
  np.testing.assert_array_equal(
    found, found.astype(ml_dtypes.bfloat16).astype(np.float32)
  )


def test_embedding_scale_is_rounded_in_half_precision():
  params = jax.tree.map(
    lambda x: np.zeros_like(x, ml_dtypes.bfloat16), parameters()
  )
  params["embed"] = np.ones_like(params["embed"])
  assert (features(A, cfg=HALF, params=params)[:6] == 4.09375).all()


def test_one_program_for_each_shape():
  features(A)
  before = encode_tokens._cache_size()
  for segments in ([0] * LENGTH, np.arange(LENGTH) // 3 + 1):
    features([1] * LENGTH, segments)
  assert encode_tokens._cache_size() == before


def test_a_single_head_is_not_sharded():
  def axes(cfg):
    key = boxed_shapes(cfg)["blocks"]["attention"]["key"]["kernel"]
    return key.names

  assert axes(CFG) == ("layers", "embed", "heads", "head_dim")
  alone = dataclasses.replace(CFG, kv_heads=1)
  assert axes(alone) == ("layers", "embed", None, "head_dim")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(kv_heads=3), "multiple of kv_heads = 3"),
    (dict(head_dim=7), "head_dim = 7 must be even"),
    (dict(hidden="first"), "unknown hidden 'first'; use one of: last, penul"),
    (dict(activation="relu"), "unknown activation 'relu'"),
    (dict(dtype="int8"), "unknown dtype 'int8'"),
    (dict(depth=1), "set hidden = 'last'"),
  ],
)
def test_invalid_configs_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)
