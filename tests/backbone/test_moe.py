"""Routed feed-forwards against a plain loop over experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.backbone import moe

B, L, D, F, E, K = 2, 6, 8, 16, 4, 2


def experts(**changes):
  fields = dict(
    hidden=F, experts=E, active=K, by_sample=False, dtype=jnp.float32
  )
  return moe.Experts(**fields | changes)


def tokens(seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((B, L, D), np.float32)


ONE = np.ones((B, L), np.int32)


@functools.cache
def params():
  """The parameters of any of these modules."""
  init = jax.jit(experts().init)(jax.random.key(1), tokens(), tokens(), ONE)
  return nn.unbox(init)["params"]


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, *arguments):
  return module.apply({"params": params}, *arguments)


def looped(params, x, logits, active=K):
  """Every token through every one of its experts, one at a time (numpy)."""
  params, x, logits = jax.device_get((params, x, logits))
  out = np.zeros_like(x)
  for place in np.ndindex(*x.shape[:2]):
    best = np.argsort(-logits[place], kind="stable")[:active]
    weights = np.exp(logits[place][best] - logits[place][best].max())
    for expert, weight in zip(best, weights / weights.sum(), strict=True):
      gate, up, down = (
        params[f"{name}_kernel"][expert] for name in ("gate", "up", "down")
      )
      h = x[place] @ gate
      h = h / (1 + np.exp(-h)) * (x[place] @ up)
      out[place] += weight * (h @ down)
  return out


@pytest.mark.parametrize("active", [1, E])
def test_every_token_gets_its_best_experts_and_none_is_dropped(active):
  module, x = experts(active=active), tokens()
  logits = x @ params()["router"]["kernel"]
  found = run(module, params(), x, x, ONE)
  np.testing.assert_allclose(
    found, looped(params(), x, logits, active), atol=1e-5
  )


def test_one_expert_may_take_all_tokens():
  kernel = np.zeros((D, E), np.float32)
  kernel[:, 2] = 1
  crowded = params() | {"router": {"kernel": kernel}}
  x = np.abs(tokens())
  logits = x @ kernel
  assert (np.argmax(logits, axis=-1) == 2).all()
  np.testing.assert_allclose(
    run(experts(), crowded, x, x, ONE), looped(crowded, x, logits), atol=1e-5
  )


def test_a_sample_chooses_for_all_of_its_tokens():
  module, x = experts(by_sample=True), tokens()
  times = tokens(seed=2)[:, :2]
  segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2]], np.int32)
  logits = times @ params()["router"]["kernel"]
  of_token = np.take_along_axis(
    np.asarray(logits), np.maximum(segments - 1, 0)[..., None], axis=1
  )
  found = run(module, params(), x, times, segments)
  expected = looped(params(), x, of_token)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tokens_do_not_depend_on_their_neighbours():
  x, other = tokens(), tokens(seed=5)
  mixed = x.copy()
  mixed[:, ::2] = other[:, ::2]
  a, b = (run(experts(), params(), y, y, ONE) for y in (x, mixed))
  np.testing.assert_allclose(a[:, 1::2], b[:, 1::2], atol=1e-6)
  assert np.abs(a[:, ::2] - b[:, ::2]).max() > 1e-3


def test_gradients_are_those_of_a_dense_sum_over_experts():
  def dense(params, x):
    logits = x @ params["router"]["kernel"]
    best, choice = jax.lax.top_k(logits, K)
    chosen = jax.nn.one_hot(choice, E) * jax.nn.softmax(best)[..., None]
    h = nn.silu(jnp.einsum("bld,edf->blef", x, params["gate_kernel"]))
    h = h * jnp.einsum("bld,edf->blef", x, params["up_kernel"])
    y = jnp.einsum("blef,efd->bled", h, params["down_kernel"])
    return jnp.einsum("bled,ble->bld", y, chosen.sum(axis=-2))

  def ours(params, x):
    return experts().apply({"params": params}, x, x, ONE)

  @jax.jit
  def gradients(params, x):
    return [
      jax.grad(lambda *args, f=f: jnp.sum(f(*args) ** 3), (0, 1))(params, x)
      for f in (ours, dense)
    ]

  found, expected = gradients(params(), tokens())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected
  )


@jax.jit
def balance(logits, segments):
  choice = jax.lax.top_k(logits, K)[1]
  return moe.balance(logits, choice, segments != 0)


def loss(logits, segments=ONE):
  return float(balance(np.asarray(logits, np.float32), segments))


def test_balance_is_one_when_experts_are_equal_and_grows_to_e_over_k():
  turns = np.eye(E)[np.arange(B * L) % E].reshape(B, L, E)
  both = turns + np.roll(turns, 1, axis=-1)
  assert loss(both) == pytest.approx(1.0, abs=1e-6)
  crowded = np.broadcast_to([50.0, 50.0, 0, 0], (B, L, E))
  assert loss(crowded) == pytest.approx(E / K, abs=1e-3)


def test_balance_leaves_padding_out():
  logits = np.random.default_rng(0).normal(size=(B, L, E))
  padded = np.concatenate([logits, 100 * np.ones_like(logits)], axis=1)
  segments = np.concatenate([ONE, 0 * ONE], axis=1)
  assert loss(padded, segments) == pytest.approx(loss(logits), abs=1e-6)


def test_balance_is_only_computed_if_its_collection_is_mutable():
  x = tokens()

  apply = jax.jit(experts().apply, static_argnames="mutable")
  variables = {"params": params()}
  out, sown = apply(variables, x, x, ONE, mutable=(moe.COLLECTION,))
  np.testing.assert_array_equal(run(experts(), params(), x, x, ONE), out)
  (value,) = jax.tree.leaves(sown)
  assert 0.5 < float(value) < E


def test_experts_start_as_their_own_matrices():
  kernels = params()["gate_kernel"]
  bound = np.sqrt(6 / (D + F))
  assert bound * 0.8 < np.abs(kernels).max() <= bound
  assert not np.array_equal(kernels[0], kernels[1])
  router = params()["router"]["kernel"]
  assert 0.5 / np.sqrt(D) < np.abs(router).max() <= 1 / np.sqrt(D)


def test_lowered_for_tpu_it_is_a_ragged_product():
  arguments = {"params": params()}, tokens(), tokens(), ONE
  lowered = (
    jax.jit(experts().apply)
    .trace(*arguments)
    .lower(lowering_platforms=("tpu",))
  )
  assert lowered.as_text().count("ragged_dot") >= 3
