"""Text keys and values computed once equal those of each evaluation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support.families import FAMILIES, random_params

from lumina_jax import packing
from lumina_jax.backbone import DiT
from lumina_jax.backbone.cache import TextCache, text_cache
from lumina_jax.tokens import Condition

# Grouped queries, a norm of keys or none, and queries for the text alone.
NETWORKS = {
  "flag": FAMILIES["flag_text"],
  "next": FAMILIES["next_text"],
  "text_query": dataclasses.replace(FAMILIES["next_text"], text_query=True),
  "audio": FAMILIES["audio"],
}
SAMPLES = 2


def inputs(cfg):
  """A row of two samples, a row of one, and a padded row without any."""
  rng = np.random.default_rng(0)
  grids = [cfg.grid(*((n,) if len(cfg.patch) == 1 else (4, n))) for n in (4, 6)]
  tokens, texts = [], []
  for row in (grids, grids[:1], []):
    patches = [
      rng.standard_normal((g.num_tokens, cfg.patch_dim), np.float32)
      for g in row
    ]
    features = [
      rng.standard_normal((n, cfg.text_width), np.float32)
      for n in range(2, 2 + len(row))
    ]
    tokens.append(
      packing.pack(row, patches, 24, cfg.patch_dim, cfg.position_axes)
    )
    texts.append(packing.pack_text(features, 8, cfg.text_width, np.float32))
  time = rng.uniform(size=(3, SAMPLES)).astype(np.float32)
  return packing.stack(tokens), packing.stack(texts)._replace(time=time)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cache_changes_nothing(name):
  cfg = NETWORKS[name]
  params, (tokens, condition) = random_params(cfg), inputs(cfg)

  @jax.jit
  def both(params, tokens, condition):
    predict = functools.partial(DiT(cfg).apply, {"params": params}, tokens)
    cache = text_cache(cfg, params, condition, SAMPLES)
    # Nothing else reads the features.
    return predict(condition), predict(condition._replace(text=None), cache)

  plain, cached = both(params, tokens, condition)
  largest = np.abs(plain).max()
  assert largest > 0.1
  np.testing.assert_allclose(cached, plain, rtol=0, atol=1e-6 * largest)


def test_the_first_rows_of_a_cache():
  keys = np.arange(24.0).reshape(2, 3, 2, 2, 1)
  first = TextCache(np.ones((3, 1, 2)), keys, -keys).first(2)
  np.testing.assert_array_equal(first.keys, keys[:, :2])
  np.testing.assert_array_equal(first.values, -keys[:, :2])
  assert first.pooled.shape == (2, 1, 2)


def test_shapes_of_a_cache():
  cfg = NETWORKS["next"]
  _, condition = inputs(cfg)
  cache = jax.eval_shape(
    lambda params: text_cache(cfg, params, condition, SAMPLES),
    random_params(cfg),
  )
  kv = (cfg.depth, 3, 8, cfg.kv_heads, cfg.head_dim)
  assert cache.keys.shape == cache.values.shape == kv
  assert cache.pooled.shape == (3, SAMPLES, cfg.cond_width)


def test_a_network_without_text_has_none():
  assert text_cache(FAMILIES["next_imagenet"], {}, Condition(), 1) is None
