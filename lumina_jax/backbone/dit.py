"""DiT: tokens in, velocity out. The only backbone.

B rows, L tokens, D width, P patch, N samples a row, C cond width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.backbone import rope
from lumina_jax.backbone.attention import Attention
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

  Zero-initialised gates and projection make it exactly 0 at initialisation.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, tokens: Tokens, condition: Condition) -> jax.Array:
    """Returns velocity `f32[B, L, P]`, zero on separators and padding."""
    cfg = self.cfg
    cond_BNC = self._condition(condition)
    x = self._embed(tokens)
    angles = rope.angles(tokens.ids, cfg.head_dim, cfg.rope_theta)
    x, _ = self._blocks()(
      x,
      cond_BNC,
      angles,
      tokens.segments,
      condition.text if cfg.text_width else None,
      condition.text_segments if cfg.text_width else None,
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

    def learnt(name):
      token = parameter(self, name, normal, (cfg.width,), ("embed",))
      return token.astype(x.dtype)

    if cfg.separators and len(cfg.patch) >= 2:
      at = (tokens.kinds == NEXTLINE)[..., None]
      x = jnp.where(at, learnt("nextline"), x)
    if cfg.separators and len(cfg.patch) >= 3:
      at = (tokens.kinds == NEXTFRAME)[..., None]
      x = jnp.where(at, learnt("nextframe"), x)
    if cfg.text_width:
      x = jnp.where((tokens.segments == 0)[..., None], learnt("pad"), x)
    return nn.with_logical_constraint(x, STREAM)

  def _condition(self, condition: Condition) -> jax.Array:
    cfg = self.cfg
    cond = TimeEmbedder(cfg.cond_width, name="time_embed")(
      condition.time * cfg.time_scale
    )
    if cfg.text_width:
      cond += TextPooler(cfg.cond_width, cfg.norm_eps, name="text_pool")(
        condition.text, condition.text_segments, condition.time.shape[1]
      )
    if cfg.num_labels:
      shape = (cfg.num_labels + 1, cfg.cond_width)
      table = parameter(self, "label_embed", normal, shape, (None, "cond"))
      cond += table[condition.label]
    return cond

  def _blocks(self) -> nn.Module:
    cfg = self.cfg
    block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
    scanned = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
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
    x = LayerNorm(FINAL_NORM_EPS, affine=False, name="final_norm")(x)
    x = modulate(x, scale, *shift)
    velocity = Einsum(
      "BLD,DP->BLP",
      (cfg.width, cfg.patch_dim),
      ("embed", None),
      zeros,
      bias=True,
      dtype=jnp.dtype(cfg.dtype),
      name="final",
    )(x).astype(jnp.float32)
    real = (tokens.segments != 0) & (tokens.kinds == PATCH)
    return jnp.where(real[..., None], velocity, 0)


class Block(nn.Module):
  """One layer: attention, then feed-forward, each normed, steered and gated.

  Flag-DiT: x += g f(norm(x) (1 + s) + b).
  Next-DiT: x += tanh(g) norm'(f(norm(x) (1 + s))).
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self, x, cond_BNC, angles, segments, text_BSE, text_segments
  ) -> tuple[jax.Array, None]:
    cfg = self.cfg
    # Order of the original: (shift,) scale, gate of attention, then of FFN.
    each = 3 if cfg.shift else 2
    parts = Modulation(2 * each, cfg.width, name="modulation")(cond_BNC)
    parts = [per_token(p, segments) for p in parts]

    def sublayer(name, x, function, parts):
      *shift, scale, gate = parts
      h = RMSNorm(cfg.norm_eps, scale=cfg.pre_norm_scale, name=f"{name}_norm")(
        x
      )
      h = function(modulate(h, scale, *shift))
      if cfg.sandwich:
        h = RMSNorm(cfg.norm_eps, name=f"{name}_post_norm")(h)
      gate = jnp.tanh(gate) if cfg.tanh_gate else gate
      x = x + (gate * h).astype(x.dtype)
      return nn.with_logical_constraint(x, STREAM)

    def attention(h):
      return Attention(cfg, name="attention")(
        h, angles, segments, text_BSE, text_segments
      )

    feed_forward = SwiGLU(
      cfg.ffn_width, jnp.dtype(cfg.dtype), name="feed_forward"
    )
    x = sublayer("attention", x, attention, parts[:each])
    x = sublayer("feed_forward", x, feed_forward, parts[each:])
    return x, None


def modulate(x: jax.Array, scale: jax.Array, *shift: jax.Array) -> jax.Array:
  """x (1 + scale) (+ shift), computed in float32, in x's dtype."""
  y = x.astype(jnp.float32) * (1 + scale)
  for term in shift:
    y = y + term
  return y.astype(x.dtype)
