"""Names and config.json of diffusers' AutoencoderKL, both ways."""

import re
from collections.abc import Mapping
from typing import Any

from lumina_jax.encoders.vae import VaeConfig
from lumina_jax.interop.names import NameTable, TableBuilder

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
ATTENTION = "mid_block.attentions.0"
# Names of the attention's projections in checkpoints of old versions.
OLD_NAMES = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}
OLD_KEY = re.compile(
  rf"(.*{re.escape(ATTENTION)}\.)({'|'.join(OLD_NAMES)})(\.weight|\.bias)"
)
# Our field -> its name in config.json, and diffusers' default.
FIELDS = {
  "channels": ("in_channels", 3),
  "latent_channels": ("latent_channels", 4),
  "widths": ("block_out_channels", (64,)),
  "layers": ("layers_per_block", 1),
  "norm_groups": ("norm_num_groups", 32),
  "scaling_factor": ("scaling_factor", 0.18215),
  "shift_factor": ("shift_factor", 0.0),
  "quant_conv": ("use_quant_conv", True),
  "post_quant_conv": ("use_post_quant_conv", True),
  "mid_attention": ("mid_block_add_attention", True),
}
# Options of diffusers' tiling and float16 handling, which we ignore.
IGNORED = {"sample_size": 1024, "force_upcast": True}


def vae_names(cfg: VaeConfig) -> NameTable:
  """The name table of AutoencoderKL."""
  encoder = TableBuilder("encoder/", "encoder.")
  decoder = TableBuilder("decoder/", "decoder.")
  rest = TableBuilder()
  width = cfg.widths[0]
  for i, out in enumerate(cfg.widths):
    block = f"down_blocks.{i}"
    for j in range(cfg.layers):
      ours, theirs = f"block_{i}_residual_{j}", f"{block}.resnets.{j}"
      _residual(encoder, ours, theirs, shortcut=width != out)
      width = out
    if i < len(cfg.widths) - 1:
      theirs = f"{block}.downsamplers.0.conv"
      encoder.linear(f"block_{i}_down", theirs, kind="conv")
  for i, out in enumerate(cfg.widths[::-1]):
    block = f"up_blocks.{i}"
    for j in range(cfg.layers + 1):
      ours, theirs = f"block_{i}_residual_{j}", f"{block}.resnets.{j}"
      _residual(decoder, ours, theirs, shortcut=width != out)
      width = out
    if i < len(cfg.widths) - 1:
      theirs = f"{block}.upsamplers.0.conv"
      decoder.linear(f"block_{i}_up", theirs, kind="conv")
  for builder in (encoder, decoder):
    builder.linear("first", "conv_in", kind="conv")
    _middle(builder, cfg)
    builder.norm("last_norm", "conv_norm_out")
    builder.linear("last", "conv_out", kind="conv")
  if cfg.quant_conv:
    rest.linear("encoder/quant", "quant_conv", kind="conv")
  if cfg.post_quant_conv:
    rest.linear("decoder/post_quant", "post_quant_conv", kind="conv")
  return encoder.table | decoder.table | rest.table


def _residual(
  builder: TableBuilder, ours: str, theirs: str, shortcut: bool
) -> None:
  for name, number in (("first", 1), ("second", 2)):
    builder.norm(f"{ours}/{name}_norm", f"{theirs}.norm{number}")
    builder.linear(f"{ours}/{name}", f"{theirs}.conv{number}", kind="conv")
  if shortcut:
    builder.linear(f"{ours}/shortcut", f"{theirs}.conv_shortcut", kind="conv")


def _middle(builder: TableBuilder, cfg: VaeConfig) -> None:
  for j in range(2):
    theirs = f"mid_block.resnets.{j}"
    _residual(builder, f"middle/residual_{j}", theirs, shortcut=False)
  if cfg.mid_attention:
    builder.norm("middle/attention/norm", f"{ATTENTION}.group_norm")
    for ours, theirs in zip(
      ("query", "key", "value", "out"), OLD_NAMES.values(), strict=True
    ):
      builder.linear(f"middle/attention/{ours}", f"{ATTENTION}.{theirs}")


def config_json(cfg: VaeConfig) -> dict[str, Any]:
  """The values of config.json; they do not include the compute dtype."""
  fields = {theirs: getattr(cfg, ours) for ours, (theirs, _) in FIELDS.items()}
  blocks = len(cfg.widths)
  return {
    "_class_name": CLASS,
    "_diffusers_version": "0.30.0",
    **fields,
    "block_out_channels": list(cfg.widths),
    "out_channels": cfg.channels,
    "down_block_types": [DOWN] * blocks,
    "up_block_types": [UP] * blocks,
    "act_fn": "silu",
    **IGNORED,
  }


def vae_config(values: Mapping[str, Any]) -> VaeConfig:
  """Reads the network from a config.json, the inverse of `config_json`.

  Missing values have AutoencoderKL's defaults.

  Raises:
    ValueError: naming a value that this network does not support.
  """
  found = values.get("_class_name")
  if found != CLASS:
    raise ValueError(
      f"config.json is of class {found}; of diffusers' autoencoders only "
      f"{CLASS} is supported"
    )
  values = {k: v for k, v in values.items() if v is not None and k[0] != "_"}
  fields = {
    ours: values.get(theirs, default)
    for ours, (theirs, default) in FIELDS.items()
  }
  fields["widths"] = tuple(fields["widths"])
  blocks = len(fields["widths"])
  fixed = {
    "out_channels": (fields["channels"], 3),
    "down_block_types": ([DOWN] * blocks, [DOWN]),
    "up_block_types": ([UP] * blocks, [UP]),
    "act_fn": ("silu", "silu"),
  }
  wrong = []
  for name, (expected, default) in fixed.items():
    value = values.get(name, default)
    value = list(value) if isinstance(value, list | tuple) else value
    if value != expected:
      wrong.append(f"{name} = {value!r} (must be {expected!r})")
  known = {*fixed, *IGNORED, *(theirs for theirs, _ in FIELDS.values())}
  wrong += [
    f"{name} = {value!r} (unknown)"
    for name, value in values.items()
    if name not in known
  ]
  if wrong:
    raise ValueError(
      f"config.json has values that are not supported for {CLASS}: "
      f"{', '.join(wrong)}"
    )
  return VaeConfig(**fields)
