"""Policies of the backward pass, and what each really recomputes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.attention import kernels
from lumina_jax.attention.chunked import Chunked
from lumina_jax.backbone import DiT, ModelConfig, remat
from lumina_jax.tokens import Condition, Tokens

CFG = ModelConfig(
  patch=(2, 2), channels=4, width=64, depth=2, heads=2, kv_heads=2,
  cond_width=16, text_width=32, ffn_multiple=32, dtype="float32",
)  # fmt: skip
L, S = 64, 16


def shapes():
  shape = jax.ShapeDtypeStruct
  tokens = Tokens(
    shape((1, L, CFG.patch_dim), jnp.float32),
    shape((1, L, 1), jnp.int32),
    shape((1, L), jnp.int32),
    shape((1, L), jnp.int32),
  )
  condition = Condition(
    time=shape((1, 1), jnp.float32),
    text=shape((1, S, CFG.text_width), jnp.float32),
    text_segments=shape((1, S), jnp.int32),
  )
  return tokens, condition


def random_like(tree):
  """Arrays of these shapes: N(0, 0.3), and ones for integers."""
  rng = np.random.default_rng(0)

  def one(x):
    if x.dtype == jnp.int32:
      return np.ones(x.shape, np.int32)
    return rng.normal(0, 0.3, x.shape).astype(np.float32)

  return jax.tree.map(one, tree)


def gradient(cfg):
  def loss(params, tokens, condition):
    return jnp.sum(DiT(cfg).apply(params, tokens, condition) ** 2)

  return jax.jit(jax.grad(loss))


@functools.cache
def parameters():
  return jax.eval_shape(DiT(CFG).init, jax.random.key(0), *shapes())


@dataclasses.dataclass(frozen=True)
class Counted(Chunked):
  """Calls the host each time its forward pass runs."""

  def forward(self, *inputs):
    out, lse = super().forward(*inputs)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    zero = jax.pure_callback(count, scalar, lse[0, 0, 0])
    return out + zero, lse + zero


def count(_):
  calls.append(1)
  return np.float32(0)


calls = []


@pytest.mark.parametrize(
  ("policy", "forward"),
  [
    ("full", 4),  # Self-attention and attention to text, twice.
    ("attention", 3),  # Only attention to text is recomputed.
    pytest.param("none", 2, marks=pytest.mark.long),
    pytest.param("offload_hidden", 4, marks=pytest.mark.long),
    pytest.param("offload_attention", 3, marks=pytest.mark.long),
  ],
)
def test_saving_attention_removes_its_recomputation(
  policy, forward, monkeypatch
):
  """Calls of the kernel in the program of a gradient, and those that run."""
  monkeypatch.setattr(kernels, "choose", lambda *_, **__: Counted())
  step = gradient(dataclasses.replace(CFG, remat=policy))
  batch = random_like(shapes())
  compiled = step.lower(parameters(), *batch).compile()
  target = 'custom_call_target="xla_ffi_python_cpu_callback"'
  assert compiled.as_text().count(target) == forward
  calls.clear()
  jax.block_until_ready(compiled(random_like(parameters()), *batch))
  assert len(calls) == forward * CFG.depth


@pytest.mark.parametrize(
  "policy", ["full", "offload_hidden", "offload_attention"]
)
def test_offloading_goes_to_the_host(policy):
  step = gradient(dataclasses.replace(CFG, remat=policy))
  lowered = step.trace(parameters(), *shapes()).lower(
    lowering_platforms=("tpu",)
  )
  assert ("pinned_host" in lowered.as_text()) == (policy != "full")


@pytest.mark.long
def test_no_policy_changes_a_gradient():
  params, batch = random_like(parameters()), random_like(shapes())
  plain = gradient(dataclasses.replace(CFG, remat="none"))(params, *batch)
  for policy in remat.POLICIES[1:]:
    found = gradient(dataclasses.replace(CFG, remat=policy))(params, *batch)
    for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)


@pytest.mark.long
def test_saving_less_takes_less_memory():
  """Temporaries of the gradient, as the CPU's compiler plans them."""

  def bytes_of(policy):
    cfg = dataclasses.replace(CFG, remat=policy, depth=8)
    params = jax.eval_shape(DiT(cfg).init, jax.random.key(0), *shapes())
    compiled = gradient(cfg).lower(params, *shapes()).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, attention, full = map(bytes_of, ("none", "attention", "full"))
  assert full < attention < none / 2
