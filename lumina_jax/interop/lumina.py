"""The original's names: the state dict of Alpha-VLLM/Lumina-T2X."""

from __future__ import annotations

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop.names import Rows, Table


def lumina_names(cfg: ModelConfig) -> Table:
  """The state dict of the original code, image networks and audio alike.

  Raises:
    ValueError: if the original has no such network.
  """
  _refuse_others(cfg)
  audio = len(cfg.patch) == 1
  rows = Rows()
  embed = "proj_in" if audio else "x_embedder"
  rows.matrix("patch_embed", embed, kind="patch_in")
  rows.add("patch_embed/bias", f"{embed}.bias")
  rows.linear("time_embed/first", "t_embedder.mlp.0")
  rows.linear("time_embed/second", "t_embedder.mlp.2")
  rows.linear("final_modulation/project", "final_layer.adaLN_modulation.1")
  rows.matrix("final", "final_layer.linear", kind="patch_out")
  rows.add("final/bias", "final_layer.linear.bias", kind="patch_out_bias")
  if cfg.text_width:
    rows.norm("text_pool/norm", "cap_embedder.0")
    rows.linear("text_pool/project", "cap_embedder.1")
  if cfg.pad_token:
    rows.add("pad", "pad_token")
  if cfg.num_labels:
    key = "y_embedder.embedding_table.weight"
    rows.add("label_embed", key, kind="table")
  if cfg.separators:
    rows.add("nextline", "eol_token")
  block = Rows("blocks/", "blocks.{i}." if audio else "layers.{i}.")
  _lumina_attention(block, cfg)
  _lumina_feed_forwards(block, cfg)
  block.linear("modulation/project", "adaLN_modulation.1")
  for ours, theirs in _lumina_norms(cfg).items():
    block.add(f"{ours}/scale", f"{theirs}.weight")
  return rows.table | block.table


def _refuse_others(cfg: ModelConfig) -> None:
  """The original has four families of networks, and no mixtures of them."""
  text, audio = bool(cfg.text_width), len(cfg.patch) == 1
  expected = dict(
    sandwich=not cfg.raster,
    tanh_gate=not cfg.raster,
    shift=cfg.raster,
    separators=cfg.raster and text and not audio,
    pre_norm_scale=cfg.raster or text,
    final_shift=cfg.raster or not text,
    text_query=False,
    rope_theta=1e4,
    cond_width=cfg.width if audio else min(cfg.width, 1024),
    num_labels=0 if text else cfg.num_labels,
    time_scale=cfg.time_scale if audio else 1.0,
  )
  wrong = [
    f"{field} = {getattr(cfg, field)} (there {value})"
    for field, value in expected.items()
    if getattr(cfg, field) != value
  ]
  if len(cfg.patch) > 2 or len(set(cfg.patch)) > 1:
    wrong.append(f"patch = {cfg.patch} (there two equal sides, or one)")
  if wrong:
    raise ValueError(
      f"the original code has no such network: {', '.join(wrong)}"
    )


def _lumina_attention(block: Rows, cfg: ModelConfig) -> None:
  block.matrix("attention/query", "attention.wq")
  block.matrix("attention/key", "attention.wk")
  block.matrix("attention/value", "attention.wv")
  block.matrix("attention/out", "attention.wo", kind="matrix_from_heads")
  norms = {"query": "q", "key": "k"}
  if cfg.text_width:
    norms["text_key"] = "ky"
    block.matrix("attention/text_key", "attention.wk_y")
    block.matrix("attention/text_value", "attention.wv_y")
    block.add("attention/text_norm/scale", "attention_y_norm.weight")
    block.add("attention/text_gate", "attention.gate")
  if cfg.qk_norm:
    for ours, theirs in norms.items():
      block.norm(f"attention/{ours}_norm", f"attention.{theirs}_norm")


def _lumina_feed_forwards(block: Rows, cfg: ModelConfig) -> None:
  parts = {"gate": "w1", "down": "w2", "up": "w3"}
  for ours, router in cfg.feed_forwards.items():
    theirs = ours.replace("token", "space")
    if router is None:
      for part, weight in parts.items():
        block.matrix(f"{ours}/{part}", f"{theirs}.{weight}")
      continue
    block.matrix(f"{ours}/router", f"{theirs}.gate")
    for part, weight in parts.items():
      key = f"{theirs}.experts.{{e}}.{weight}.weight"
      block.add(f"{ours}/{part}_kernel", key, kind="matrix")


def _lumina_norms(cfg: ModelConfig) -> dict[str, str]:
  """RMSNorms; a number tells before from after only where both have weights."""
  sublayers = {"attention": "attention_norm", "feed_forward": "ffn_norm"}
  sublayers |= {
    "feed_forward_time": "ffn_norm_time",
    "feed_forward_token": "ffn_norm_space",
  }
  of = {name: sublayers[name] for name in ("attention", *cfg.feed_forwards)}
  if not cfg.sandwich:
    return {f"{ours}_norm": theirs for ours, theirs in of.items()}
  if not cfg.pre_norm_scale:
    return {f"{ours}_post_norm": theirs for ours, theirs in of.items()}
  before = {f"{ours}_norm": f"{theirs}1" for ours, theirs in of.items()}
  after = {f"{ours}_post_norm": f"{theirs}2" for ours, theirs in of.items()}
  return before | after
