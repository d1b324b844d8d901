"""Names and config.json of diffusers' LuminaNextDiT2DModel, both ways."""

import functools
from collections.abc import Mapping
from typing import Any

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import NEXT_DIT
from lumina_jax.interop.hugging_face import value_of
from lumina_jax.interop.names import NameTable, TableBuilder

CLASS = "LuminaNextDiT2DModel"
MEDIUM = "image"
OTHER_LAYOUTS = "Use layout='lumina', or 'lumina_jax' for a whole pipeline"
# Fields that diffusers' class fixes.
FIELDS = NEXT_DIT | dict(
  pad_token=True,
  pre_norm_scale=True,
  final_shift=False,
  routing=(),
  num_labels=0,
  rope_theta=1e4,
  rope_linear=1.0,
  rope_ntk=1.0,
  time_scale=1.0,
)


def diffusers_names(cfg: ModelConfig, medium: str) -> NameTable:
  """The name table of diffusers' LuminaNextDiT2DModel.

  Its state dict holds the query projection twice, for self-attention and for
  text.

  Raises:
    ValueError: if the network is not a text-to-image Next-DiT.
  """
  if medium != MEDIUM:
    raise ValueError(
      f"diffusers' {CLASS} does not support the medium {medium!r}, only "
      f"{MEDIUM!r}. {OTHER_LAYOUTS}"
    )
  expected = FIELDS | dict(
    cond_width=min(cfg.width, 1024), patch=cfg.patch[:1] * 2
  )
  wrong = [
    f"{field} = {getattr(cfg, field)!r} (must be {value!r})"
    for field, value in expected.items()
    if getattr(cfg, field) != value
  ]
  if not cfg.text_width:
    wrong.append("text_width = 0 (must be positive)")
  if wrong:
    raise ValueError(
      f"diffusers' {CLASS} is a text-to-image Next-DiT; this network differs: "
      f"{', '.join(wrong)}. {OTHER_LAYOUTS}"
    )
  builder = TableBuilder()
  builder.add("pad", "pad_token")
  builder.linear("patch_embed", "patch_embedder.proj", kind="patch_in")
  embed = "time_caption_embed"
  builder.linear("time_embed/first", f"{embed}.timestep_embedder.linear_1")
  builder.linear("time_embed/second", f"{embed}.timestep_embedder.linear_2")
  builder.norm("text_pool/norm", f"{embed}.caption_embedder.0")
  builder.linear("text_pool/project", f"{embed}.caption_embedder.1")
  builder.linear("final_modulation/project", "norm_out.linear_1")
  builder.matrix("final", "norm_out.linear_2", kind="patch_out")
  builder.add("final/bias", "norm_out.linear_2.bias", kind="patch_out_bias")
  block = TableBuilder("blocks/", "layers.{i}.")
  _add_attention(block, cfg)
  block.linear("modulation/project", "norm1.linear")
  block.add("attention_norm/scale", "norm1.norm.weight")
  block.add("attention_post_norm/scale", "norm2.weight")
  block.add("feed_forward_norm/scale", "ffn_norm1.weight")
  block.add("feed_forward_post_norm/scale", "ffn_norm2.weight")
  for part, number in (("gate", 1), ("down", 2), ("up", 3)):
    block.matrix(f"feed_forward/{part}", f"feed_forward.linear_{number}")
  return builder.table | block.table


def _add_attention(block: TableBuilder, cfg: ModelConfig) -> None:
  queries = {"query": ("attn1", "attn2")}
  if cfg.text_query:
    queries = {"query": ("attn1",), "text_query": ("attn2",)}
  for ours, theirs in queries.items():
    block.matrix(f"attention/{ours}", *(f"{name}.to_q" for name in theirs))
  for prefix, theirs in (("", "attn1"), ("text_", "attn2")):
    block.matrix(f"attention/{prefix}key", f"{theirs}.to_k")
    block.matrix(f"attention/{prefix}value", f"{theirs}.to_v")
  if cfg.qk_norm:
    for ours, theirs in queries.items():
      block.norm(f"attention/{ours}_norm", *(f"{x}.norm_q" for x in theirs))
    block.norm("attention/key_norm", "attn1.norm_k")
    block.norm("attention/text_key_norm", "attn2.norm_k")
  block.matrix("attention/out", "attn2.to_out.0", kind="matrix_from_heads")
  block.add("attention/text_norm/scale", "norm1_context.weight")
  block.add("attention/text_gate", "gate")


def diffusers_config(
  values: Mapping[str, Any], text_query: bool
) -> tuple[ModelConfig, bool]:
  """Reads the network from a config.json of diffusers.

  Args:
    values: the values of config.json.
    text_query: whether text has a query projection of its own.

  Returns:
    The network, and whether its last layer has the unused sigma half.

  Raises:
    ValueError: if it is of another class, or lacks a value.
  """
  found = values.get("_class_name") or "none"
  if found != CLASS:
    raise ValueError(
      f"config.json is of class {found}; of diffusers' classes only {CLASS} "
      "is supported"
    )
  value = functools.partial(value_of, values)
  width, heads = value("hidden_size"), value("num_attention_heads")
  factor = values.get("ffn_dim_multiplier")
  kv_heads = values.get("num_kv_heads")
  cfg = ModelConfig(
    patch=(value("patch_size"),) * 2,
    channels=value("in_channels"),
    width=width,
    depth=value("num_layers"),
    heads=heads,
    kv_heads=heads if kv_heads is None else kv_heads,
    cond_width=min(width, 1024),
    text_width=value("cross_attention_dim"),
    ffn_multiple=value("multiple_of"),
    ffn_factor=1.0 if factor is None else float(factor),
    qk_norm=value("qk_norm"),
    norm_eps=float(value("norm_eps")),
    text_query=text_query,
    **FIELDS,
  )
  return cfg, bool(value("learn_sigma"))


def config_json(cfg: ModelConfig) -> dict[str, Any]:
  """The values of config.json, the inverse of `diffusers_config`."""
  return {
    "_class_name": CLASS,
    "_diffusers_version": "0.30.0",
    "sample_size": 128,
    "patch_size": cfg.patch[0],
    "in_channels": cfg.channels,
    "hidden_size": cfg.width,
    "num_layers": cfg.depth,
    "num_attention_heads": cfg.heads,
    "num_kv_heads": cfg.kv_heads,
    "multiple_of": cfg.ffn_multiple,
    "ffn_dim_multiplier": None if cfg.ffn_factor == 1 else cfg.ffn_factor,
    "norm_eps": cfg.norm_eps,
    "learn_sigma": True,
    "qk_norm": cfg.qk_norm,
    "cross_attention_dim": cfg.text_width,
    "scaling_factor": 1.0,
  }
