"""DiT, the only backbone: noisy tokens in, predicted velocity out.

B rows, L tokens, D width, P values of a patch, N samples a row, C cond width,
K head channels.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.backbone import moe, remat, rope
from lumina_jax.backbone.attention import Attention
from lumina_jax.backbone.cache import TextCache
from lumina_jax.backbone.config import ModelConfig
from lumina_jax.backbone.layers import (
  Einsum,
  LayerNorm,
  Modulation,
  RMSNorm,
  SwiGLU,
  TextPooler,
  TimeEmbedder,
  normal,
  parameter,
  xavier,
  zeros,
)
from lumina_jax.tokens import (
  NEXTFRAME,
  NEXTLINE,
  PATCH,
  Condition,
  Tokens,
  per_token,
)

FINAL_NORM_EPS = 1e-6
STREAM = ("act_batch", "act_length", "act_embed")


class DiT(nn.Module):
  """Predicts the velocity of every patch.

  Zero-initialised gates and projections make the velocity exactly 0 at
  initialisation. Routed feed-forwards sow their load-balancing loss, one number
  per layer, into the collection "balance"; it is computed only if that
  collection is mutable.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self, tokens: Tokens, condition: Condition, text: TextCache | None = None
  ) -> jax.Array:
    """Predicts the velocity.

    Args:
      tokens: noisy patches and their layout.
      condition: time, label, text and RoPE rates of each sample.
      text: `text_cache` of the condition; None computes it here.

    Returns:
      Velocity `f32[B, L, P]`, zero on separators and padding.
    """
    cfg = self.cfg
    time_BNC = TimeEmbedder(cfg.cond_width, name="time_embed")(
      condition.time * cfg.time_scale
    )
    cond_BNC = self._condition(time_BNC, condition, text)
    theta = cfg.rope_theta * cfg.rope_ntk
    rates = rope.frequencies(cfg.head_dim, cfg.position_axes, theta)
    rates = rates / cfg.rope_linear
    if condition.rope_rates is not None:
      rates = per_token(condition.rope_rates, tokens.segments)
    rotation = rope.rotation(rope.angles(tokens.ids, rates))
    x, _ = self._blocks()(
      self._embed(tokens),
      cond_BNC,
      time_BNC,
      rotation,
      tokens.segments,
      condition,
      text and (text.keys, text.values),
    )
    return self._velocity(x, cond_BNC, tokens)

  def _embed(self, tokens: Tokens) -> jax.Array:
    cfg = self.cfg
    x = Einsum(
      "BLP,PD->BLD",
      (cfg.patch_dim, cfg.width),
      (None, "embed"),
      xavier(),
      bias=True,
      dtype=jnp.dtype(cfg.dtype),
      name="patch_embed",
    )(tokens.patches)

    def replace(x, where, name):
      token = parameter(self, name, normal, (cfg.width,), ("embed",))
      return jnp.where(where[..., None], token.astype(x.dtype), x)

    if cfg.separators and len(cfg.patch) >= 2:
      x = replace(x, tokens.kinds == NEXTLINE, "nextline")
    if cfg.separators and len(cfg.patch) >= 3:
      x = replace(x, tokens.kinds == NEXTFRAME, "nextframe")
    if cfg.pad_token:
      x = replace(x, tokens.segments == 0, "pad")
    if "token" in cfg.routing:
      # Rounding must not change the expert of a token between two of them.
      x = x.astype(jnp.float32)
    return nn.with_logical_constraint(x, STREAM)

  def _condition(
    self, cond: jax.Array, condition: Condition, text: TextCache | None
  ) -> jax.Array:
    cfg = self.cfg
    if text is not None:
      cond += text.pooled
    elif cfg.text_width:
      init = zeros if cfg.zero_text_pool else xavier()
      cond += TextPooler(cfg.cond_width, init, name="text_pool")(
        condition.text, condition.text_segments, condition.time.shape[1]
      )
    if cfg.num_labels:
      shape = (cfg.num_labels + 1, cfg.cond_width)
      table = parameter(self, "label_embed", normal, shape, (None, "cond"))
      cond += table[condition.label]
    return cond

  def _blocks(self) -> nn.Module:
    cfg = self.cfg
    scanned = nn.scan(
      remat.wrap(Block, cfg.remat),
      variable_axes={"params": 0, moe.COLLECTION: 0},
      split_rngs={"params": True},
      in_axes=(*(nn.broadcast,) * 5, 0),
      length=cfg.depth,
      unroll=cfg.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(cfg, name="blocks")

  def _velocity(self, x, cond_BNC, tokens: Tokens) -> jax.Array:
    cfg = self.cfg
    parts = Modulation(1 + cfg.final_shift, cfg.width, name="final_modulation")(
      cond_BNC
    )
    *shift, scale = (per_token(p, tokens.segments) for p in parts)
    norm = LayerNorm(affine=False, eps=FINAL_NORM_EPS, name="final_norm")
    velocity = Einsum(
      "BLD,DP->BLP",
      (cfg.width, cfg.patch_dim),
      ("embed", None),
      zeros,
      bias=True,
      dtype=jnp.dtype(cfg.dtype),
      name="final",
    )(modulate(norm(x), scale, *shift)).astype(jnp.float32)
    real = (tokens.segments != 0) & (tokens.kinds == PATCH)
    return jnp.where(real[..., None], velocity, 0)


def example_inputs(cfg: ModelConfig) -> tuple[Tokens, Condition]:
  """Arguments of one token and one word, to initialise a network with."""
  one = jnp.ones((1, 1), jnp.int32)
  tokens = Tokens(
    patches=jnp.zeros((1, 1, cfg.patch_dim)),
    ids=jnp.zeros((1, 1, cfg.position_axes), jnp.int32),
    kinds=jnp.zeros((1, 1), jnp.int32),
    segments=one,
  )
  condition = Condition(
    time=jnp.zeros((1, 1)),
    label=jnp.zeros((1, 1), jnp.int32),
    text=jnp.zeros((1, 1, cfg.text_width)),
    text_segments=one,
  )
  return tokens, condition


def shapes(cfg: ModelConfig) -> dict[str, Any]:
  """Shapes of the parameters as a nested dict, without allocating them."""
  inputs = example_inputs(cfg)
  init = jax.eval_shape(DiT(cfg).init, jax.random.key(0), *inputs)
  return nn.unbox(init)["params"]


class Block(nn.Module):
  """One layer: attention, then feed-forward; each normed, modulated and gated.

  Flag-DiT: x += g f(norm(x) (1 + s) + b).
  Next-DiT: x += tanh(g) norm'(f(norm(x) (1 + s))).
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self, x, cond_BNC, time_BNC, rotation, segments, condition, text
  ) -> tuple[jax.Array, None]:
    cfg = self.cfg
    x = checkpoint_name(x, remat.STREAM)

    def attention(h):
      module = Attention(cfg, name="attention")
      return module(h, rotation, condition, segments, text)

    def feed_forward(h, name, router):
      dtype = jnp.dtype(cfg.dtype)
      if router is None:
        return SwiGLU(cfg.ffn_width, dtype, name=name)(h)
      experts = moe.Experts(
        cfg.ffn_width,
        cfg.experts,
        cfg.active_experts,
        by_sample=router == "time",
        dtype=dtype,
        name=name,
      )
      return experts(h, time_BNC if router == "time" else h, segments)

    sublayers = {"attention": attention} | {
      name: functools.partial(feed_forward, name=name, router=router)
      for name, router in cfg.feed_forwards.items()
    }
    # The original's order: (shift,) scale and gate of each sublayer in turn.
    each = 3 if cfg.shift else 2
    parts = Modulation(each * len(sublayers), cfg.width, name="modulation")(
      cond_BNC
    )
    parts = (per_token(p, segments) for p in parts)
    for name, function in sublayers.items():
      x = self._sublayer(name, x, function, *itertools.islice(parts, each))
    return x, None

  def _sublayer(self, name, x, function, *parts) -> jax.Array:
    cfg = self.cfg
    *shift, scale, gate = parts
    norm = RMSNorm(cfg.norm_eps, scale=cfg.pre_norm_scale, name=f"{name}_norm")
    h = function(modulate(norm(x), scale, *shift)).astype(x.dtype)
    if cfg.sandwich:
      h = RMSNorm(cfg.norm_eps, name=f"{name}_post_norm")(h)
    gate = jnp.tanh(gate) if cfg.tanh_gate else gate
    x = x + (gate * h).astype(x.dtype)
    return nn.with_logical_constraint(x, STREAM)


def modulate(x: jax.Array, scale: jax.Array, *shift: jax.Array) -> jax.Array:
  """x (1 + scale) (+ shift), computed in float32, returned in x's dtype."""
  y = x.astype(jnp.float32) * (1 + scale)
  for term in shift:
    y = y + term
  return y.astype(x.dtype)
