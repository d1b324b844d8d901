"""`attend` equals a loop; a query without a key yields zeros."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax import attention
from lumina_jax.attention.mask import has_key, mask

attend = jax.jit(attention.attend)

K = 8
Q_SEGMENTS = np.array([[1, 1, 2, 2, 2, 3, 0], [2, 1, 1, 3, 4, 0, 0]])
KV_SEGMENTS = np.array([[1, 1, 1, 2, 0], [1, 3, 2, 2, 2]])
# Queries of segments 3 (row 0) and 4 (row 1), and padding, have no key.
WITH_KEY = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0]], bool)


def qkv(queries=7, keys=5, heads=4, kv_heads=2, rows=2, seed=0):
  rng = np.random.default_rng(seed)

  def draw(length, heads):
    return rng.normal(size=(rows, length, heads, K)).astype(np.float32)

  return draw(queries, heads), draw(keys, kv_heads), draw(keys, kv_heads)


def by_hand(q, k, v, q_segments, kv_segments):
  """Softmax attention, a query and a head at a time, in float64."""
  q, k, v = (x.astype(np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  group = q.shape[2] // k.shape[2]
  for b, i, h in itertools.product(*map(range, q.shape[:3])):
    own = (kv_segments[b] == q_segments[b, i]) & (q_segments[b, i] != 0)
    if own.any():
      scores = k[b, own, h // group] @ q[b, i, h] / np.sqrt(K)
      weights = np.exp(scores - scores.max())
      out[b, i, h] = weights @ v[b, own, h // group] / weights.sum()
  return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_attend_equals_a_loop_with_ragged_segments(heads, kv_heads):
  q, k, v = qkv(heads=heads, kv_heads=kv_heads)
  np.testing.assert_allclose(
    attend(q, k, v, Q_SEGMENTS, KV_SEGMENTS),
    by_hand(q, k, v, Q_SEGMENTS, KV_SEGMENTS),
    atol=1e-5,
  )


def test_one_segment_is_plain_attention():
  q, k, v = qkv()
  ones = np.ones_like
  np.testing.assert_allclose(
    attend(q, k, v, ones(Q_SEGMENTS), ones(KV_SEGMENTS)),
    jax.nn.dot_product_attention(*map(jnp.asarray, (q, k, v))),
    atol=1e-5,
  )


def test_padding_changes_nothing():
  q, k, v = qkv()
  segments = np.ones((2, 7), int), np.ones((2, 5), int)
  widths = ((0, 0), (0, 3), (0, 0), (0, 0))
  longer = [np.pad(x, widths, constant_values=1e4) for x in (q, k, v)]
  padded = [np.pad(s, ((0, 0), (0, 3))) for s in segments]
  out = attend(*longer, *padded)
  np.testing.assert_allclose(out[:, :7], attend(q, k, v, *segments), atol=1e-6)
  assert not out[:, 7:].any()


def test_packed_neighbours_change_nothing():
  q, k, v = qkv(queries=5)
  out = attend(q, k, v, KV_SEGMENTS, KV_SEGMENTS)
  own = KV_SEGMENTS[1] == 2
  alone = np.ones((1, own.sum()), int)
  np.testing.assert_allclose(
    out[1, own], attend(*(x[1, own][None] for x in (q, k, v)), alone, alone)[0],
    atol=1e-6,
  )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_query_without_key_yields_exact_zeros(dtype):
  q, k, v = (jnp.asarray(x, dtype) for x in qkv())
  out = attend(q, k, v, Q_SEGMENTS, KV_SEGMENTS)
  assert out.dtype == dtype
  assert np.array_equal(np.any(out != 0, axis=(2, 3)), WITH_KEY)


@jax.jit
def gradients(q_segments, kv_segments):
  weight = qkv(seed=1)[0]

  def loss(q, k, v):
    return jnp.sum(weight * attend(q, k, v, q_segments, kv_segments))

  return jax.grad(loss, argnums=(0, 1, 2))(*qkv())


def test_without_any_key_all_gradients_are_zero():
  for grad in gradients(Q_SEGMENTS, np.zeros_like(KV_SEGMENTS)):
    np.testing.assert_array_equal(grad, 0)


def test_a_query_without_key_passes_no_gradient():
  dq, dk, dv = gradients(Q_SEGMENTS, KV_SEGMENTS)
  assert all(np.isfinite(grad).all() for grad in (dq, dk, dv))
  assert not dq[~WITH_KEY].any()
  only = np.where(WITH_KEY, Q_SEGMENTS, 0)
  for grad, expected in zip(
    (dq, dk, dv), gradients(only, KV_SEGMENTS), strict=True
  ):
    np.testing.assert_array_equal(grad, expected)


def test_a_key_without_query_gets_no_gradient():
  _, dk, dv = gradients(Q_SEGMENTS, KV_SEGMENTS)
  unread = KV_SEGMENTS == 0
  assert unread.any()
  assert not dk[unread].any()
  assert not dv[unread].any()


def test_segments_attend_where_equal_and_not_zero():
  allowed = mask(jnp.array([[0, 1, 2]]), jnp.array([[0, 1, 1, 3]]))
  assert allowed[0].astype(int).tolist() == [
    [0, 0, 0, 0],
    [0, 1, 1, 0],
    [0, 0, 0, 0],
  ]


def test_has_key_is_false_without_a_partner():
  valid = has_key(jnp.asarray(Q_SEGMENTS), jnp.asarray(KV_SEGMENTS))
  np.testing.assert_array_equal(valid, WITH_KEY)
