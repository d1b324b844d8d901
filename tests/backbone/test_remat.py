"""Policies of what the backward pass keeps, and what each really computes."""

import dataclasses

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


def draw(tree):
  """Arrays of these shapes: N(0, 0.3), and ones where numbers are whole."""
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
    ("none", 2),  # Self-attention and attention to text.
    ("full", 4),
    ("attention", 3),  # Text is computed again.
    pytest.param("offload_hidden", 4, marks=pytest.mark.slow),
    pytest.param("offload_attention", 3, marks=pytest.mark.slow),
  ],
)
def test_saving_attention_removes_its_recomputation(
  policy, forward, monkeypatch
):
  """Calls of the kernel in the program of a gradient, and those that run."""
  monkeypatch.setattr(kernels, "choose", lambda *_, **__: Counted())
  step = gradient(dataclasses.replace(CFG, remat=policy))
  batch = draw(shapes())
  compiled = step.lower(parameters(), *batch).compile()
  target = 'custom_call_target="xla_ffi_python_cpu_callback"'
  assert compiled.as_text().count(target) == forward
  calls.clear()
  jax.block_until_ready(compiled(draw(parameters()), *batch))
  assert len(calls) == forward * CFG.depth


def test_what_is_offloaded_goes_to_the_host_and_back():
  def lowered(policy):
    traced = gradient(dataclasses.replace(CFG, remat=policy)).trace(
      parameters(), *shapes()
    )
    return traced.lower(lowering_platforms=("tpu",)).as_text()

  assert "pinned_host" not in lowered("full")
  assert "pinned_host" in lowered("offload_hidden")
  assert "pinned_host" in lowered("offload_attention")


@pytest.mark.slow
@pytest.mark.long
def test_no_policy_changes_a_gradient():
  params, batch = draw(parameters()), draw(shapes())
  plain = gradient(dataclasses.replace(CFG, remat="none"))(params, *batch)
  for policy in remat.POLICIES[1:]:
    found = gradient(dataclasses.replace(CFG, remat=policy))(params, *batch)
    for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)


@pytest.mark.slow
def test_saving_less_takes_less_memory():
  """Temporaries of the gradient, as the CPU's compiler plans them."""

  def bytes_of(policy):
    cfg = dataclasses.replace(CFG, remat=policy, depth=8)
    params = jax.eval_shape(DiT(cfg).init, jax.random.key(0), *shapes())
    compiled = gradient(cfg).lower(params, *shapes()).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, attention, full = map(bytes_of, ("none", "attention", "full"))
  assert full < attention < none / 2


def test_names_are_checked_and_older_ones_understood():
  assert dataclasses.replace(CFG, remat=True).remat == "full"
  assert dataclasses.replace(CFG, remat=False).remat == "none"
  with pytest.raises(ValueError, match=r"remat 'save': use one of .*'offload_"):
    dataclasses.replace(CFG, remat="save")
