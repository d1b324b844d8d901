"""Language models as frozen text encoders: LLaMA, Gemma, Gemma-2, Qwen3.

One decoder serves all families; `LanguageConfig` holds the differences.
`interop.language` reads the parameters from published files. The features are
one hidden state of the model, a vector per token.

B rows, S tokens, E width, H heads, G heads of keys and values, R = H / G heads
that share one of them, K head channels, F feed-forward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.backbone.layers import Einsum, normal, ones, parameter, zeros
from lumina_jax.encoders.language_config import ACTIVATIONS, LanguageConfig
from lumina_jax.parallel.mesh import RULES

STREAM = ("act_batch", "act_length", "act_embed")
MASKED = -1e30  # Score of masked keys; finite, since padding masks all keys.


@functools.partial(jax.jit, static_argnums=0)
def encode_tokens(
  cfg: LanguageConfig, params: Any, tokens: jax.Array, segments: jax.Array
) -> jax.Array:
  """Tokens `i32[B, S]` -> features `f32[B, S, E]`, zero at padding.

  Tokens attend to themselves and to earlier tokens of their segment. Each
  (B, S) compiles one program. Under `jax.set_mesh`, rows shard over (data,
  fsdp) and tokens over context where the sizes divide.

  Args:
    cfg: config of the model.
    params: parameters of `LanguageModel`, as `interop.language.load_language`
      returns them.
    tokens: token ids; any value at padding.
    segments: `i32[B, S]`, the caption of the row that a token belongs to: runs
      of equal numbers from 1, and 0 for padding at any place.
  """
  with nn.logical_axis_rules(RULES):
    return LanguageModel(cfg).apply({"params": params}, tokens, segments)


def boxed_shapes(cfg: LanguageConfig) -> dict[str, Any]:
  """Shapes of the parameters, boxed with their logical axes."""
  one = jnp.ones((1, 1), jnp.int32)
  init = jax.eval_shape(LanguageModel(cfg).init, jax.random.key(0), one, one)
  return init["params"]


class LanguageModel(nn.Module):
  """Embeddings, layers, and a norm for the last hidden state."""

  cfg: LanguageConfig

  @nn.compact
  def __call__(self, tokens_BS: jax.Array, segments: jax.Array) -> jax.Array:
    cfg = self.cfg
    shape, axes = (cfg.vocab, cfg.width), ("vocab", "embed")
    table = parameter(self, "embed", normal, shape, axes)
    dtype = jnp.dtype(cfg.dtype)
    # Replicated in between: the compiler has no direct way from the sharding of
    # the table to that of the stream.
    x_BSE = nn.with_logical_constraint(table[tokens_BS], (None, None, None))
    x_BSE = x_BSE.astype(dtype) * jnp.asarray(cfg.embed_scale, dtype)
    x_BSE = nn.with_logical_constraint(x_BSE, STREAM)
    same = segments[:, :, None] == segments[:, None, :]
    mask_BST = same & (segments != 0)[:, None, :]
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=cfg.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    windows = jnp.asarray(cfg.windows, jnp.int32)
    x_BSE, _ = blocks(cfg, name="blocks")(
      x_BSE, windows, mask_BST, angles(cfg, tokens_BS.shape[1])
    )
    if cfg.hidden == "last":
      x_BSE = Norm(cfg, name="final_norm")(x_BSE)
    x_BSE = jnp.where((segments != 0)[..., None], x_BSE.astype(jnp.float32), 0)
    return nn.with_logical_constraint(x_BSE, STREAM)


class Block(nn.Module):
  """Attention, then feed-forward, each with its norms."""

  cfg: LanguageConfig

  @nn.compact
  def __call__(
    self, x_BSE, window, mask_BST, angles_SK
  ) -> tuple[jax.Array, None]:
    cfg = self.cfg
    attention = Attention(cfg, name="attention")
    for name, function in (
      ("attention", lambda h: attention(h, window, mask_BST, angles_SK)),
      ("feed_forward", FeedForward(cfg, name="feed_forward")),
    ):
      h_BSE = function(Norm(cfg, name=f"{name}_norm")(x_BSE))
      if cfg.post_norms:
        h_BSE = Norm(cfg, name=f"{name}_post_norm")(h_BSE)
      x_BSE = nn.with_logical_constraint(x_BSE + h_BSE, STREAM)
    return x_BSE, None


class Attention(nn.Module):
  """softmax(cap(q k^T scale)) v; causal, within segments and the window.

  RoPE rotates q and k by their positions in the row. Only differences of
  positions matter, so they need not restart in each segment.
  """

  cfg: LanguageConfig

  @nn.compact
  def __call__(self, x_BSE, window, mask_BST, angles_SK) -> jax.Array:
    cfg = self.cfg
    q = rotate(self._project("query", x_BSE, cfg.heads), angles_SK)
    k = rotate(self._project("key", x_BSE, cfg.kv_heads), angles_SK)
    v = self._project("value", x_BSE, cfg.kv_heads)
    B, S, H, K = q.shape
    q = q.reshape(B, S, cfg.kv_heads, H // cfg.kv_heads, K)
    scores = jnp.einsum(
      "BSGRK,BTGK->BGRST", q, k, preferred_element_type=jnp.float32
    )
    scores = scores * cfg.query_scale
    if cfg.score_cap:
      scores = cfg.score_cap * jnp.tanh(scores / cfg.score_cap)
    distance = jnp.arange(S)[:, None] - jnp.arange(S)
    visible = mask_BST & (distance >= 0) & (distance < window)
    scores = jnp.where(visible[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    out = jnp.einsum("BGRST,BTGK->BSGRK", weights, v).reshape(B, S, H, K)
    return Einsum(
      "BSHK,HKE->BSE",
      (cfg.heads, cfg.head_dim, cfg.width),
      ("heads", "head_dim", "embed"),
      normal,
      dtype=jnp.dtype(cfg.dtype),
      name="out",
    )(out)

  def _project(self, name: str, x_BSE: jax.Array, heads: int) -> jax.Array:
    cfg = self.cfg
    # A single head (multi-query attention) is replicated on all devices.
    axis = "heads" if heads > 1 else None
    y = Einsum(
      "BSE,EHK->BSHK",
      (cfg.width, heads, cfg.head_dim),
      ("embed", axis, "head_dim"),
      normal,
      dtype=jnp.dtype(cfg.dtype),
      name=name,
    )(x_BSE)
    if cfg.qk_norm and name != "value":
      y = Norm(cfg, name=f"{name}_norm")(y)
    axis = "act_heads" if heads > 1 else None
    return nn.with_logical_constraint(y, (*STREAM[:2], axis, None))


class FeedForward(nn.Module):
  """down(act(gate(x)) * up(x)) (Shazeer 2020, section 2)."""

  cfg: LanguageConfig

  @nn.compact
  def __call__(self, x_BSE: jax.Array) -> jax.Array:
    shape, axes = (self.cfg.width, self.cfg.ffn_width), ("embed", "mlp")

    def linear(name, equation, shape, axes):
      dtype = jnp.dtype(self.cfg.dtype)
      return Einsum(equation, shape, axes, normal, dtype=dtype, name=name)

    gate = linear("gate", "BSE,EF->BSF", shape, axes)(x_BSE)
    up = linear("up", "BSE,EF->BSF", shape, axes)(x_BSE)
    h_BSF = ACTIVATIONS[self.cfg.activation](gate) * up
    h_BSF = nn.with_logical_constraint(h_BSF, (*STREAM[:2], "act_mlp"))
    return linear("down", "BSF,FE->BSE", shape[::-1], axes[::-1])(h_BSF)


class Norm(nn.Module):
  """x / sqrt(mean(x^2) + eps) (offset + w), computed in float32."""

  cfg: LanguageConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    square = jnp.mean(y * y, axis=-1, keepdims=True)
    init = zeros if self.cfg.norm_offset else ones
    scale = parameter(self, "scale", init, x.shape[-1:], ("norm",))
    scale = self.cfg.norm_offset + scale.astype(jnp.float32)
    y = y * jax.lax.rsqrt(square + self.cfg.norm_eps) * scale
    return y.astype(x.dtype)


def angles(cfg: LanguageConfig, length: int) -> jax.Array:
  """RoPE angles of positions and pairs of channels, `f32[S, K / 2]`.

  position / factor * theta^(-2 k / K), k < K / 2 (Su et al. 2021, section 3.2).
  """
  exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
  positions = jnp.arange(length, dtype=jnp.float32) / cfg.rope_factor
  return positions[:, None] * cfg.rope_theta**-exponent


def rotate(x_BSHK: jax.Array, angles_SK: jax.Array) -> jax.Array:
  """Rotates channels k and k + K / 2 as pairs, as Hugging Face does."""
  cos, sin = jnp.cos(angles_SK)[:, None], jnp.sin(angles_SK)[:, None]
  a, b = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x_BSHK.dtype)
