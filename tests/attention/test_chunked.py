"""Attention in chunks of queries against the whole score matrix at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.attention import attend
from lumina_jax.attention.chunked import Chunked

B, L, S, H, G, K = 2, 11, 7, 4, 2, 8


def whole(q, k, v, q_segments, kv_segments):
  """The definition, with kv heads repeated and zeros where no key is."""
  k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
  scores = jnp.einsum("blhk,bshk->bhls", q, k) / K**0.5
  allowed = q_segments[:, :, None] == kv_segments[:, None, :]
  allowed &= (q_segments != 0)[:, :, None]
  weights = jnp.where(allowed[:, None], jnp.exp(scores), 0)
  total = weights.sum(axis=-1, keepdims=True)
  weights = weights / jnp.where(total == 0, 1, total)
  return jnp.einsum("bhls,bshk->blhk", weights, v)


def inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  q = jax.random.normal(keys[0], (B, L, H, K))
  k, v = (jax.random.normal(key, (B, S, G, K)) for key in keys[1:])
  # Two samples and padding; sample 3 has queries and no keys.
  q_segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 2, [1] * 6 + [3] * 5])
  kv_segments = jnp.array([[1] * 3 + [2] * 3 + [0], [1] * 7])
  return (q, k, v), (q_segments, kv_segments)


@pytest.mark.parametrize("queries", [1, 3, 22])
def test_values_and_gradients_do_not_depend_on_the_chunks(queries):
  """Chunks of one, three (with padding) and all 22 queries of a kv head."""
  arrays, segments = inputs()
  kernel = Chunked(scores=1, min_queries=queries)
  attend_chunked = functools.partial(attend, kernel=kernel)

  def loss(function):
    def total(arrays):
      out = function(*arrays, *segments)
      return jnp.sum(jnp.sin(out) * jnp.arange(out.size).reshape(out.shape))

    return jax.jit(jax.value_and_grad(total))(arrays)

  jaxpr = str(jax.make_jaxpr(attend_chunked)(*arrays, *segments))
  assert f"length={-(-22 // queries)}" in jaxpr.replace("\n", " ")
  with jax.default_matmul_precision("highest"):
    found, expected = loss(attend_chunked), loss(whole)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4),
    found,
    expected,
  )


def test_the_score_matrix_never_exists():
  length = 4096
  q = jax.ShapeDtypeStruct((1, length, H, K), jnp.float32)
  kv = jax.ShapeDtypeStruct((1, length, G, K), jnp.float32)
  segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def loss(q, k, v, segments):
    return jnp.sum(attend(q, k, v, segments, segments))

  compiled = (
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, segments).compile()
  )
  matrix = 4 * H * length**2
  assert compiled.memory_analysis().temp_size_in_bytes < matrix / 2
