"""diffusers' LuminaNextDiT2DModel: its names and its config.json, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import NEXT_DIT
from lumina_jax.interop.names import Rows, Table

CLASS = "LuminaNextDiT2DModel"
# What diffusers' LuminaNextDiT2DModel is, beside its sizes.
FIELDS = dict(
  raster=False,
  separators=False,
  sandwich=True,
  pre_norm_scale=True,
  shift=False,
  tanh_gate=True,
  final_shift=False,
  routing=(),
  num_labels=0,
  rope_theta=1e4,
  rope_linear=1.0,
  rope_ntk=1.0,
  time_scale=1.0,
)


def diffusers_names(cfg: ModelConfig) -> Table:
  """The state dict of diffusers' LuminaNextDiT2DModel.

  It holds the queries twice, for self-attention and for text.

  Raises:
    ValueError: if the network is no text-to-image Next-DiT.
  """
  wrong = [
    f"{field} = {getattr(cfg, field)!r} (there {value!r})"
    for field, value in FIELDS.items()
    if getattr(cfg, field) != value
  ]
  if cfg.cond_width != min(cfg.width, 1024):
    wrong.append(f"cond_width = {cfg.cond_width} (there min(width, 1024))")
  if len(cfg.patch) != 2 or len(set(cfg.patch)) != 1:
    wrong.append(f"patch = {cfg.patch} (there two equal sides)")
  if wrong or not cfg.text_width:
    raise ValueError(
      "diffusers has a class for text-to-image Next-DiT only, "
      "LuminaNextDiT2DModel, and none for this network: "
      f"{', '.join(wrong) or 'it takes no text'}. Use layout='lumina'"
    )
  rows = Rows()
  rows.add("pad", "pad_token")
  rows.matrix("patch_embed", "patch_embedder.proj", kind="patch_in")
  rows.add("patch_embed/bias", "patch_embedder.proj.bias")
  embed = "time_caption_embed"
  rows.linear("time_embed/first", f"{embed}.timestep_embedder.linear_1")
  rows.linear("time_embed/second", f"{embed}.timestep_embedder.linear_2")
  rows.norm("text_pool/norm", f"{embed}.caption_embedder.0")
  rows.linear("text_pool/project", f"{embed}.caption_embedder.1")
  rows.linear("final_modulation/project", "norm_out.linear_1")
  rows.matrix("final", "norm_out.linear_2", kind="patch_out")
  rows.add("final/bias", "norm_out.linear_2.bias", kind="patch_out_bias")
  block = Rows("blocks/", "layers.{i}.")
  _diffusers_attention(block, cfg)
  block.linear("modulation/project", "norm1.linear")
  block.add("attention_norm/scale", "norm1.norm.weight")
  block.add("attention_post_norm/scale", "norm2.weight")
  block.add("feed_forward_norm/scale", "ffn_norm1.weight")
  block.add("feed_forward_post_norm/scale", "ffn_norm2.weight")
  for part, number in (("gate", 1), ("down", 2), ("up", 3)):
    block.matrix(f"feed_forward/{part}", f"feed_forward.linear_{number}")
  return rows.table | block.table


def _diffusers_attention(block: Rows, cfg: ModelConfig) -> None:
  both, text = ("attn1", "attn2"), ("attn2",)
  queries = {"query": both}
  if cfg.text_query:
    queries = {"query": ("attn1",), "text_query": text}
  for ours, at in queries.items():
    block.matrix(f"attention/{ours}", *(f"{a}.to_q" for a in at))
  for ours, at in (("key", "attn1"), ("text_key", "attn2")):
    block.matrix(f"attention/{ours}", f"{at}.to_k")
    block.matrix(f"attention/{ours.replace('key', 'value')}", f"{at}.to_v")
  if cfg.qk_norm:
    for ours, at in queries.items():
      block.norm(f"attention/{ours}_norm", *(f"{a}.norm_q" for a in at))
    block.norm("attention/key_norm", "attn1.norm_k")
    block.norm("attention/text_key_norm", "attn2.norm_k")
  block.matrix("attention/out", "attn2.to_out.0", kind="matrix_from_heads")
  block.add("attention/text_norm/scale", "norm1_context.weight")
  block.add("attention/text_gate", "gate")


def diffusers_config(
  values: Mapping[str, Any], separate: bool
) -> tuple[ModelConfig, bool]:
  """The network of a diffusers config.json.

  Args:
    values: of config.json.
    separate: whether text has queries of its own.

  Returns:
    The network, and whether its last layer has the unused sigma half.

  Raises:
    ValueError: if it is of another class, or misses a value.
  """
  found = _or(values, "_class_name", "none")
  if found != CLASS:
    raise ValueError(
      f"config.json is of class {found}; of diffusers' classes only "
      f"{CLASS} is a network of this family"
    )

  def value(name):
    if name not in values:
      raise ValueError(f"config.json lacks {name!r}")
    return values[name]

  width, heads = value("hidden_size"), value("num_attention_heads")
  factor = _or(values, "ffn_dim_multiplier", None)
  cfg = ModelConfig(
    patch=(value("patch_size"),) * 2,
    channels=value("in_channels"),
    width=width,
    depth=value("num_layers"),
    heads=heads,
    kv_heads=_or(values, "num_kv_heads", heads),
    cond_width=min(width, 1024),
    text_width=value("cross_attention_dim"),
    ffn_multiple=value("multiple_of"),
    ffn_factor=1.0 if factor is None else float(factor),
    qk_norm=value("qk_norm"),
    norm_eps=float(value("norm_eps")),
    text_query=separate,
    final_shift=False,
    **NEXT_DIT,
  )
  return cfg, bool(value("learn_sigma"))


def _or(values: Mapping[str, Any], name: str, otherwise: Any) -> Any:
  """A value that the file may leave out or set to null."""
  value = values.get(name)
  return otherwise if value is None else value


def config_json(cfg: ModelConfig) -> dict[str, Any]:
  """What config.json says of the network, the inverse of `diffusers_config`."""
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
