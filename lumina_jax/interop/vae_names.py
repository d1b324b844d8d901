"""diffusers' AutoencoderKL: its names and its config.json, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lumina_jax.encoders.vae import VaeConfig
from lumina_jax.interop.names import Rows, Table

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
ATTENTION = "mid_block.attentions.0"
# What the attention's parts were called before there was one class for all.
OLD = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}
OLD_KEY = re.compile(
  rf"(.*{re.escape(ATTENTION)}\.)({'|'.join(OLD)})(\.weight|\.bias)"
)
# Our field, and what stands for it in config.json, with what it is if left out.
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
# The size for their tiles, and a precaution with float16: nothing to us.
IDLE = {"sample_size": 1024, "force_upcast": True}


def vae_names(cfg: VaeConfig) -> Table:
  """Our parameters and their keys in a state dict of AutoencoderKL.

  Kinds: "conv" (HWIO here, OIHW there), "linear" (transposed), "vector".
  """
  encoder = Rows("encoder/", "encoder.")
  decoder = Rows("decoder/", "decoder.")
  rest = Rows()
  width = cfg.widths[0]
  for i, out in enumerate(cfg.widths):
    block = f"down_blocks.{i}"
    for j in range(cfg.layers):
      ours, theirs = f"block_{i}_residual_{j}", f"{block}.resnets.{j}"
      _residual(encoder, ours, theirs, shortcut=width != out)
      width = out
    if i < len(cfg.widths) - 1:
      _conv(encoder, f"block_{i}_down", f"{block}.downsamplers.0.conv")
  for i, out in enumerate(cfg.widths[::-1]):
    block = f"up_blocks.{i}"
    for j in range(cfg.layers + 1):
      ours, theirs = f"block_{i}_residual_{j}", f"{block}.resnets.{j}"
      _residual(decoder, ours, theirs, shortcut=width != out)
      width = out
    if i < len(cfg.widths) - 1:
      _conv(decoder, f"block_{i}_up", f"{block}.upsamplers.0.conv")
  for rows in (encoder, decoder):
    _conv(rows, "first", "conv_in")
    _middle(rows, cfg)
    rows.norm("last_norm", "conv_norm_out")
    _conv(rows, "last", "conv_out")
  if cfg.quant_conv:
    _conv(rest, "encoder/quant", "quant_conv")
  if cfg.post_quant_conv:
    _conv(rest, "decoder/post_quant", "post_quant_conv")
  return encoder.table | decoder.table | rest.table


def _conv(rows: Rows, ours: str, theirs: str, kind: str = "conv") -> None:
  rows.matrix(ours, theirs, kind=kind)
  rows.add(f"{ours}/bias", f"{theirs}.bias")


def _residual(rows: Rows, ours: str, theirs: str, shortcut: bool) -> None:
  for name, number in (("first", 1), ("second", 2)):
    rows.norm(f"{ours}/{name}_norm", f"{theirs}.norm{number}")
    _conv(rows, f"{ours}/{name}", f"{theirs}.conv{number}")
  if shortcut:
    _conv(rows, f"{ours}/shortcut", f"{theirs}.conv_shortcut")


def _middle(rows: Rows, cfg: VaeConfig) -> None:
  for j in range(2):
    theirs = f"mid_block.resnets.{j}"
    _residual(rows, f"middle/residual_{j}", theirs, shortcut=False)
  if cfg.mid_attention:
    rows.norm("middle/attention/norm", f"{ATTENTION}.group_norm")
    for ours, theirs in zip(
      ("query", "key", "value", "out"), OLD.values(), strict=True
    ):
      theirs = f"{ATTENTION}.{theirs}"
      _conv(rows, f"middle/attention/{ours}", theirs, kind="linear")


# Axes of theirs in the order of ours, and of ours in theirs.
TO_OURS = {"conv": (2, 3, 1, 0), "linear": (1, 0), "vector": (0,)}
TO_THEIRS = {"conv": (3, 2, 0, 1), "linear": (1, 0), "vector": (0,)}


def config_json(cfg: VaeConfig) -> dict[str, Any]:
  """What config.json says of a network; the dtype of computing is not in it."""
  said = {theirs: getattr(cfg, ours) for ours, (theirs, _) in FIELDS.items()}
  blocks = len(cfg.widths)
  return {
    "_class_name": CLASS,
    "_diffusers_version": "0.30.0",
    **said,
    "block_out_channels": list(cfg.widths),
    "out_channels": cfg.channels,
    "down_block_types": [DOWN] * blocks,
    "up_block_types": [UP] * blocks,
    "act_fn": "silu",
    **IDLE,
  }


def vae_config(values: Mapping[str, Any]) -> VaeConfig:
  """The network of a config.json, the inverse of `config_json`.

  What it leaves out is what AutoencoderKL takes for it.

  Raises:
    ValueError: if it says what this network cannot be, naming the value.
  """
  found = values.get("_class_name")
  if found != CLASS:
    raise ValueError(
      f"config.json is of class {found}; of diffusers' autoencoders only "
      f"{CLASS} can be read"
    )
  given = {k: v for k, v in values.items() if v is not None and k[0] != "_"}
  fields = {
    ours: given.get(theirs, otherwise)
    for ours, (theirs, otherwise) in FIELDS.items()
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
  for name, (value, otherwise) in fixed.items():
    there = given.get(name, otherwise)
    there = list(there) if isinstance(there, list | tuple) else there
    if there != value:
      wrong.append(f"{name} = {there!r} (can be {value!r})")
  known = {theirs for theirs, _ in FIELDS.values()} | fixed.keys() | IDLE.keys()
  wrong += [
    f"{name} = {given[name]!r} (unknown)" for name in given if name not in known
  ]
  if wrong:
    raise ValueError(
      f"config.json describes another network than {CLASS} of pictures: "
      f"{', '.join(wrong)}"
    )
  return VaeConfig(**fields)
