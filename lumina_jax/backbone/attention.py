"""Attention of tokens to tokens and, through a gate, to text.

B rows, L tokens, S text tokens, D width, H heads, G kv heads, K head channels,
E text width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.attention import QUERIES, attend, kernels, split
from lumina_jax.backbone import rope
from lumina_jax.backbone.config import ModelConfig
from lumina_jax.backbone.layers import (
  Einsum,
  LayerNorm,
  RMSNorm,
  parameter,
  xavier,
  zeros,
)
from lumina_jax.tokens import Condition, per_token

KeysValues = tuple[jax.Array, jax.Array]


class Attention(nn.Module):
  """Self-attention plus zero-initialised gated cross-attention.

  out = W_o (softmax(q k^T / sqrt(K)) v
             + tanh(g) softmax(q k_y^T / sqrt(K)) v_y)

  q and k are normed over all heads jointly, then rotated. Text keys k_y are
  normed but not rotated; the same rotated queries attend to them. Each head has
  one gate g (Lumina-T2X, section 2.2; Flag-DiT equation for text). Proportional
  attention multiplies the scores of the first softmax, never of the second, by
  sqrt(log_base(length)) (Lumina-Next, section 2.1).
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    rotation: rope.Rotation,
    condition: Condition,
    segments: jax.Array,
    text: KeysValues | None = None,
  ) -> jax.Array:
    """Attends to tokens and text.

    Args:
      x_BLD: tokens `[B, L, D]`.
      rotation: rotation of each token, from its position.
      condition: text features `f32[B, S, E]` (unless `text` is given) and
        segments, and the scale of the scores.
      segments: `i32[B, L]`.
      text: precomputed keys and values of the text; None computes them here.

    Returns:
      `[B, L, D]`.
    """
    cfg = self.cfg
    q = norm(cfg, "query_norm", project(cfg, "query", x_BLD, cfg.heads))
    k = norm(cfg, "key_norm", project(cfg, "key", x_BLD, cfg.kv_heads))
    v = project(cfg, "value", x_BLD, cfg.kv_heads)
    q, k = rope.rotate(q, rotation), rope.rotate(k, rotation)
    q, k, v = (nn.with_logical_constraint(a, QUERIES) for a in (q, k, v))
    scaled = _scaled(q, condition, segments)
    out = self._attend(condition, scaled, k, v, segments, segments)
    if cfg.text_width:
      if cfg.text_query:
        q = project(cfg, "text_query", x_BLD, cfg.heads)
        q = rope.rotate(norm(cfg, "text_query_norm", q), rotation)
      out = out + self._attend_to_text(q, condition, segments, text)
    return Einsum(
      "BLHK,HKD->BLD",
      (cfg.heads, cfg.head_dim, cfg.width),
      ("heads", "head_dim", "embed"),
      xavier(inputs=2),
      dtype=jnp.dtype(cfg.dtype),
      name="out",
    )(out)

  def _attend_to_text(
    self,
    q: jax.Array,
    condition: Condition,
    segments: jax.Array,
    text: KeysValues | None,
  ) -> jax.Array:
    k, v = text or text_keys_values(self.cfg, condition.text)
    gate = parameter(self, "text_gate", zeros, (self.cfg.heads,), ("heads",))
    inputs = q, k, v, segments, condition.text_segments
    how = dict(kv_length=None, name="text_attention")
    out = self._attend(condition, *inputs, **how)
    return out * jnp.tanh(gate)[:, None].astype(out.dtype)

  def _attend(self, condition: Condition, q, *inputs, **options) -> jax.Array:
    if self.is_initializing():
      return q  # One token, which no mesh of several devices could divide.
    return attend(
      q,
      *inputs,
      kernel=self.cfg.attention_kernel,
      sequence_split=self.cfg.sequence_split,
      packed=condition.time.shape[1] > 1,
      **options,
    )


class TextProjections(nn.Module):
  """The part of `Attention` that computes keys and values of the text.

  Its parameters are those of `Attention` with the same names.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, text_BSE: jax.Array) -> KeysValues:
    """`f32[B, S, E]` -> keys and values `[B, S, G, K]`."""
    return text_keys_values(self.cfg, text_BSE)


def text_keys_values(cfg: ModelConfig, text_BSE: jax.Array) -> KeysValues:
  """Keys and values of the text; declares parameters of the current module."""
  text = RMSNorm(cfg.norm_eps, "text", name="text_norm")(text_BSE)
  k = project(cfg, "text_key", text, cfg.kv_heads, "text")
  v = project(cfg, "text_value", text, cfg.kv_heads, "text")
  return norm(cfg, "text_key_norm", k), v


def project(
  cfg: ModelConfig, name: str, x: jax.Array, heads: int, axis: str = "embed"
) -> jax.Array:
  """Projects `[B, L, E]` to heads `[B, L, heads, K]`.

  Args:
    cfg: configuration of the network.
    name: name of the kernel, a parameter of the current module.
    x: input.
    heads: number of heads.
    axis: logical axis of E.
  """
  return Einsum(
    "BSE,EGK->BSGK",
    (x.shape[-1], heads, cfg.head_dim),
    (axis, "heads", "head_dim"),
    xavier(),
    dtype=jnp.dtype(cfg.dtype),
    name=name,
  )(x)


def norm(cfg: ModelConfig, name: str, x: jax.Array) -> jax.Array:
  """LayerNorm over all heads of `[B, L, H, K]` jointly, if `cfg.qk_norm`."""
  return LayerNorm(("heads", "head_dim"), name=name)(x) if cfg.qk_norm else x


def describe(
  cfg: ModelConfig, mesh: jax.sharding.Mesh, tokens: int, packed: bool
) -> str:
  """Describes the attention of a network on a mesh, and checks that it can run.

  Args:
    cfg: configuration of the network.
    mesh: mesh that the network runs on.
    tokens: tokens of a row.
    packed: whether rows hold several samples.

  Raises:
    ValueError: if the heads do not divide over the mesh, or the kernel or split
      of the config cannot run on it.
  """
  tensor, context = mesh.shape["tensor"], mesh.shape["context"]
  for name in ("heads", "kv_heads"):
    if getattr(cfg, name) % tensor:
      raise ValueError(
        f"model.{name} = {getattr(cfg, name)} do not divide over mesh.tensor "
        f"= {tensor} devices; choose another mesh"
      )
  dtype = jnp.dtype(cfg.dtype)
  how = split.choose(
    cfg.sequence_split,
    context,
    cfg.heads // tensor,
    cfg.kv_heads // tensor,
    tokens,
    cfg.head_dim * dtype.itemsize,
  )
  with jax.set_mesh(mesh):
    kernel = kernels.choose(
      cfg.attention_kernel,
      head_dim=cfg.head_dim,
      dtype=dtype,
      packed=packed,
      ring=how.ring > 1,
      strict=True,
    )
  name = getattr(kernel, "__name__", type(kernel).__name__).lower()
  text = f"attention: {name}, remat {cfg.remat}"
  if how.gather:
    return f"{text}, keys and values gathered from {context} devices"
  if context > 1:
    return f"{text}, Ulysses of {how.ulysses} x ring of {how.ring} devices"
  return text


def _scaled(q: jax.Array, condition: Condition, segments: jax.Array):
  """Queries times the scale of their sample's scores."""
  if condition.attention_scale is None:
    return q
  scale = per_token(condition.attention_scale, segments)[..., None, None]
  return (q.astype(jnp.float32) * scale).astype(q.dtype)
