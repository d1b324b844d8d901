"""FLOPs counted from a config against XLA's count and published ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from lumina_jax.backbone import PUBLISHED, DiT, ModelConfig, flops
from lumina_jax.backbone.cache import text_cache
from lumina_jax.tokens import Condition, Tokens

SMALL = ModelConfig(
  patch=(2, 2),
  channels=4,
  width=512,
  depth=2,
  heads=4,
  kv_heads=2,
  cond_width=128,
  text_width=192,
  dtype="float32",
  remat="none",
  attention_kernel="dense",
  unroll=2,
)
B, L, S, N = 2, 256, 128, 1
VARIANTS = {
  "flag": {},
  "next": dict(
    raster=False,
    separators=False,
    sandwich=True,
    shift=False,
    text_query=True,
    kv_heads=4,
  ),
  "labels": dict(text_width=0, num_labels=10),
  "long_text_one_block": dict(depth=1, unroll=1, text_width=1024),
}


def inputs(cfg: ModelConfig):
  """Shapes of parameters, tokens and condition."""
  i32 = jnp.int32
  shape = jax.ShapeDtypeStruct
  tokens = Tokens(
    patches=shape((B, L, cfg.patch_dim), jnp.float32),
    ids=shape((B, L, cfg.position_axes), i32),
    kinds=shape((B, L), i32),
    segments=shape((B, L), i32),
  )
  condition = Condition(
    time=shape((B, N), jnp.float32),
    label=shape((B, N), i32),
    text=shape((B, S, cfg.text_width), jnp.float32),
    text_segments=shape((B, S), i32),
  )
  net = DiT(cfg)
  params = jax.eval_shape(net.init, jax.random.key(0), tokens, condition)
  return params, tokens, condition


def by_xla(function, *args) -> float:
  """XLA's count before it rewrites products into calls of libraries."""
  return jax.jit(function).lower(*args).cost_analysis()["flops"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_agrees_with_xla(variant):
  cfg = dataclasses.replace(SMALL, **VARIANTS[variant])
  ours = flops.count(cfg, B, L, S, N).forward
  assert ours == pytest.approx(by_xla(DiT(cfg).apply, *inputs(cfg)), rel=0.02)


@pytest.mark.parametrize("variant", ["flag", "next"])
def test_cached_products_agree_with_xla(variant):
  cfg = dataclasses.replace(SMALL, **VARIANTS[variant])
  params, _, condition = inputs(cfg)
  params = nn.unbox(params["params"])
  counted = by_xla(lambda *args: text_cache(cfg, *args, N), params, condition)
  found = flops.count(cfg, B, L, S, N)
  assert found.cached == pytest.approx(counted, rel=0.05)
  assert found.sample(1) == found.forward
  assert found.sample(3) == 3 * found.forward - 2 * found.cached


def test_the_7b_at_128k_agrees_with_6ps_12lssd():
  """performance: 6 P S + 12 L S^2 d, 32.5 PFLOPs a step of one sample."""
  cfg = dataclasses.replace(
    PUBLISHED["flag_dit_imagenet_7b"], num_labels=0, text_width=4096
  )
  counted = flops.count(cfg, 1, 131_072, 256).train
  assert counted == pytest.approx(32.5e15, rel=0.02)


@pytest.mark.parametrize("routing", [("time",), ("token",)])
def test_only_active_experts_count(routing):
  one = dataclasses.replace(SMALL, routing=routing, experts=4, active_experts=1)
  two = dataclasses.replace(one, active_experts=2)
  more = flops.count(two, B, L, S).rest - flops.count(one, B, L, S).rest
  assert more == B * SMALL.depth * 6 * L * SMALL.width * SMALL.ffn_width


def test_recomputation_depends_on_the_policy():
  counted = flops.count(SMALL, B, L, S)
  assert counted.train == 3 * counted.forward
  # Three of the seven products of a kernel's backward pass, in any policy.
  scores = 1.5 * (counted.attention + counted.text)
  assert counted.recomputed("none") == scores
  assert counted.recomputed("full") == scores + counted.forward
  assert counted.recomputed("offload_hidden") == scores + counted.forward
  # Attention to text is recomputed.
  kept = scores + counted.rest + counted.text
  assert counted.recomputed("attention") == kept
  assert counted.recomputed("offload_attention") == kept
