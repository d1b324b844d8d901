"""Names of the original code: the state dict of Alpha-VLLM/Lumina-T2X."""

from typing import NamedTuple

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop.names import NameTable, TableBuilder


class MediumNames(NamedTuple):
  """How the original code names the networks of one medium.

  Attributes:
    patch_embed: Key of the projection of patches.
    blocks: Key of the list of blocks.
    patch_axes: Number of axes of a patch, whose sides are equal.
    sigma: Whether the last layer has a second half that nothing reads.
  """

  patch_embed: str
  blocks: str
  patch_axes: int
  sigma: bool


MEDIA = {
  "image": MediumNames("x_embedder", "layers", 2, sigma=True),
  "audio": MediumNames("proj_in", "blocks", 1, sigma=False),
}


def lumina_names(cfg: ModelConfig, medium: str) -> NameTable:
  """The name table of the original code.

  Args:
    cfg: the network.
    medium: the medium that it generates, a key of `MEDIA`.

  Raises:
    ValueError: if the original has no such medium or network.
  """
  if medium not in MEDIA:
    raise ValueError(
      f"the original's layout does not support the medium {medium!r}; use "
      f"one of: {', '.join(MEDIA)}"
    )
  _check_supported(cfg, medium)
  names, builder = MEDIA[medium], TableBuilder()
  builder.linear("patch_embed", names.patch_embed, kind="patch_in")
  builder.linear("time_embed/first", "t_embedder.mlp.0")
  builder.linear("time_embed/second", "t_embedder.mlp.2")
  builder.linear("final_modulation/project", "final_layer.adaLN_modulation.1")
  builder.matrix("final", "final_layer.linear", kind="patch_out")
  builder.add("final/bias", "final_layer.linear.bias", kind="patch_out_bias")
  if cfg.text_width:
    builder.norm("text_pool/norm", "cap_embedder.0")
    builder.linear("text_pool/project", "cap_embedder.1")
  if cfg.pad_token:
    builder.add("pad", "pad_token")
  if cfg.num_labels:
    key = "y_embedder.embedding_table.weight"
    builder.add("label_embed", key, kind="table")
  if cfg.separators:
    builder.add("nextline", "eol_token")
  block = TableBuilder("blocks/", f"{names.blocks}.{{i}}.")
  _add_attention(block, cfg)
  _add_feed_forwards(block, cfg)
  block.linear("modulation/project", "adaLN_modulation.1")
  for ours, theirs in _norm_names(cfg).items():
    block.add(f"{ours}/scale", f"{theirs}.weight")
  return builder.table | block.table


def _check_supported(cfg: ModelConfig, medium: str) -> None:
  """Checks that the original has this combination of fields."""
  text, audio = bool(cfg.text_width), medium == "audio"
  expected = dict(
    patch=cfg.patch[:1] * MEDIA[medium].patch_axes,
    sandwich=not cfg.raster,
    tanh_gate=not cfg.raster,
    shift=cfg.raster,
    separators=cfg.raster and text and not audio,
    pad_token=text and not audio,
    pre_norm_scale=cfg.raster or text,
    final_shift=cfg.raster or not text,
    text_query=False,
    rope_theta=1e4,
    cond_width=cfg.width if audio else min(cfg.width, 1024),
    num_labels=0 if text else cfg.num_labels,
    time_scale=cfg.time_scale if audio else 1.0,
  )
  wrong = [
    f"{field} = {getattr(cfg, field)} (must be {value})"
    for field, value in expected.items()
    if getattr(cfg, field) != value
  ]
  if wrong:
    raise ValueError(
      f"the original code has no such {medium} network: {', '.join(wrong)}"
    )


def _add_attention(block: TableBuilder, cfg: ModelConfig) -> None:
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


def _add_feed_forwards(block: TableBuilder, cfg: ModelConfig) -> None:
  weights = {"gate": "w1", "down": "w2", "up": "w3"}
  for ours, router in cfg.feed_forwards.items():
    theirs = ours.replace("token", "space")
    if router is None:
      for part, weight in weights.items():
        block.matrix(f"{ours}/{part}", f"{theirs}.{weight}")
      continue
    block.matrix(f"{ours}/router", f"{theirs}.gate")
    for part, weight in weights.items():
      key = f"{theirs}.experts.{{e}}.{weight}.weight"
      block.add(f"{ours}/{part}_kernel", key, kind="matrix")


def _norm_names(cfg: ModelConfig) -> dict[str, str]:
  """Our names and theirs of the RMSNorms that have weights.

  Theirs have a number, 1 before and 2 after a sublayer, only where both norms
  have weights.
  """
  theirs = {
    "attention": "attention_norm",
    "feed_forward": "ffn_norm",
    "feed_forward_time": "ffn_norm_time",
    "feed_forward_token": "ffn_norm_space",
  }
  sublayers = ("attention", *cfg.feed_forwards)
  if not cfg.sandwich:
    return {f"{name}_norm": theirs[name] for name in sublayers}
  if not cfg.pre_norm_scale:
    return {f"{name}_post_norm": theirs[name] for name in sublayers}
  before = {f"{name}_norm": f"{theirs[name]}1" for name in sublayers}
  after = {f"{name}_post_norm": f"{theirs[name]}2" for name in sublayers}
  return before | after
