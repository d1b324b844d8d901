"""Which network a state dict is of: ModelConfig from shapes and arguments.

Shapes are believed first; arguments, in the vocabulary of the original
constructors, add what shapes leave open and are held against the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import NEXT_DIT
from lumina_jax.interop.constructors import compare
from lumina_jax.interop.seen import Seen, Shapes, some

# The constructors that train.py of the original offers by name; all of them
# have 32 heads. Weights of their width with other arguments say so in `args`.
NAMED = re.compile(r"(DiT_Llama|NextDiT)_\w+_patch2\w*")
NAMED_HEADS = 32


def lumina_config(
  shapes: Shapes, args: Mapping[str, Any]
) -> tuple[ModelConfig, bool]:
  """The network behind a state dict of the original code.

  Args:
    shapes: key -> shape.
    args: arguments of the original constructor, or of its train.py.

  Returns:
    The network, and whether its last layer has the unused sigma half.

  Raises:
    ValueError: naming what neither shapes nor arguments tell, and where the
      two disagree.
  """
  seen = Seen(shapes)
  audio = seen.has("proj_in.weight")
  if not audio and not seen.has("x_embedder.weight"):
    raise ValueError(
      "no state dict of a Lumina network: looked for x_embedder.weight "
      "(Flag-DiT, Next-DiT) or proj_in.weight (audio) and found "
      f"{some(shapes)}"
    )
  width = _width(seen)
  patch = (1,) if audio else (int(_arg(args, "patch_size", 2)),) * 2
  channels = _channels(seen, audio, patch)
  heads = _heads(seen, args)
  if width % heads:
    raise ValueError(f"{width} channels do not divide into n_heads = {heads}")
  cfg = ModelConfig(
    patch=patch,
    channels=channels,
    width=width,
    depth=seen.blocks,
    heads=heads,
    kv_heads=seen.block("attention.wk.weight")[0] * heads // width,
    cond_width=seen["t_embedder.mlp.0.weight"][0],
    text_width=seen["cap_embedder.0.weight"][0] if _text(seen) else 0,
    num_labels=_labels(seen),
    qk_norm=seen.has_block("attention.q_norm.weight"),
    norm_eps=float(_arg(args, "norm_eps", 1e-5)),
    rope_linear=float(_arg(args, "rope_scaling_factor", 1)),
    # One is Flag-DiT's word for it, the other Next-DiT's.
    rope_ntk=float(_arg(args, "ntk_factor", 1))
    * float(_arg(args, "scale_factor", 1)),
    zero_text_pool=not audio,
    time_scale=_time_scale(audio, args),
    **_experts(seen, args, width),
    **_feed_forward(seen, args, width),
    **_family(seen, audio, width),
  )
  compare(cfg, args)
  return cfg, _sigma(seen, cfg)


def _arg(args: Mapping[str, Any], name: str, otherwise: Any) -> Any:
  """An argument; the original writes None for what it leaves alone."""
  value = args.get(name)
  return otherwise if value is None else value


def _width(seen: Seen) -> int:
  # A norm, which no shard of a tensor-parallel run cuts.
  for norm in ("attention_norm1.weight", "attention_norm.weight"):
    if seen.has_block(norm):
      return seen.block(norm)[0]
  return seen.block("attention_norm.weight")[0]  # Raises and names it.


def _text(seen: Seen) -> bool:
  return seen.has("cap_embedder.0.weight")


def _labels(seen: Seen) -> int:
  table = "y_embedder.embedding_table.weight"
  return seen[table][0] - 1 if seen.has(table) else 0


def _channels(seen: Seen, audio: bool, patch: tuple[int, ...]) -> int:
  inputs = seen["proj_in.weight" if audio else "x_embedder.weight"][1]
  area = 1 if audio else patch[0] * patch[1]
  if inputs % area:
    raise ValueError(
      f"x_embedder.weight takes {inputs} values, no multiple of a patch of "
      f"{patch}; name patch_size in model_args"
    )
  return inputs // area


def _heads(seen: Seen, args: Mapping[str, Any]) -> int:
  if seen.has_block("attention.gate"):
    return seen.block("attention.gate")[0]
  for name in ("n_heads", "num_heads"):
    if _arg(args, name, None) is not None:
      return int(args[name])
  if NAMED.fullmatch(str(_arg(args, "model", ""))):
    return NAMED_HEADS
  raise ValueError(
    "the number of heads cannot be read off the weights; name it: "
    "model_args={'n_heads': 32} (--model_arg=n_heads=32), or the constructor: "
    "model_args={'model': 'DiT_Llama_600M_patch2'}"
  )


def _time_scale(audio: bool, args: Mapping[str, Any]) -> float:
  """What the network's caller multiplies time by; no weight tells it."""
  scale = _arg(args, "time_scale", None)
  if scale is None and audio:
    logging.warning(
      "audio: this network is taken to be fed time itself, from 0 to 1. The "
      "published one is fed whole steps from 0 to 999: for it, "
      "model_args={'time_scale': 1000}"
    )
  return float(scale or 1)


def _feed_forward(
  seen: Seen, args: Mapping[str, Any], width: int
) -> dict[str, Any]:
  for name in ("feed_forward", "feed_forward_time"):
    for part in ("w1.weight", "experts.0.w1.weight"):
      if seen.has_block(f"{name}.{part}"):
        hidden = seen.block(f"{name}.{part}")[0]
        return ffn_fields(width, hidden, args)
  return {"ffn_multiple": seen.block("feed_forward.w1.weight")[0]}


def ffn_fields(
  width: int, hidden: int, args: Mapping[str, Any]
) -> dict[str, Any]:
  """Fields of ModelConfig that give a feed-forward of this width.

  Raises:
    ValueError: if the arguments say another width.
  """
  base = int(8 * width / 3)
  factor = _arg(args, "ffn_dim_multiplier", None)
  multiple = _arg(args, "multiple_of", None)
  scaled = base if factor is None else int(factor * base)
  for candidate in (256, hidden) if multiple is None else (multiple,):
    if -(-scaled // candidate) * candidate == hidden:
      fields = {"ffn_multiple": int(candidate)}
      return fields | ({} if factor is None else {"ffn_factor": float(factor)})
  if factor is not None or multiple is not None:
    raise ValueError(
      f"model_args do not fit: ffn_dim_multiplier = {factor} and multiple_of = "
      f"{multiple} make no feed-forward of {hidden} from a width of {width}, "
      "which the weights have"
    )
  # Narrower than 8/3 of the width: the factor was not told, so it is found.
  return {"ffn_multiple": 1, "ffn_factor": (hidden + 0.5) / base}


def _experts(seen: Seen, args: Mapping[str, Any], width: int) -> dict[str, Any]:
  if seen.has_block("feed_forward_time.gate.weight"):
    routing, name = ("time", "token"), "feed_forward_time"
  elif seen.has_block("feed_forward.gate.weight"):
    routing, name = (_router(seen, args, width),), "feed_forward"
  else:
    return {}
  return {
    "routing": routing,
    "experts": seen.count(f"{name}.experts.{{}}.w1.weight"),
    "active_experts": int(_arg(args, "num_experts_per_tok", 2)),
  }


def _router(seen: Seen, args: Mapping[str, Any], width: int) -> str:
  """What chooses experts: the time's vector or a token, told by their width."""
  cond_width = seen["t_embedder.mlp.0.weight"][0]
  if cond_width != width:
    inputs = seen.block("feed_forward.gate.weight")[1]
    return "time" if inputs == cond_width else "token"
  model = str(_arg(args, "model", "")).lower()
  if "spatial" in model or "space" in model or "token" in model:
    return "token"
  if "time" in model or NAMED.fullmatch(str(_arg(args, "model", ""))):
    return "time"
  raise ValueError(
    f"time or token: with both {width} wide, the weights do not tell what "
    "chooses among the experts; name it: model_args={'model': "
    "'Next-DiT-MoE/time'} or {'model': 'Next-DiT-MoE/space'}"
  )


def _family(seen: Seen, audio: bool, width: int) -> dict[str, Any]:
  """Flag-DiT or Next-DiT, told by the vectors that steer a block."""
  rows = seen.block("adaLN_modulation.1.weight")[0]
  sublayers = 3 if seen.has_block("feed_forward_time.gate.weight") else 2
  steering = rows / width / sublayers
  final = seen["final_layer.adaLN_modulation.1.weight"][0] // width
  if steering == 3:
    if seen.has_block("attention_norm2.weight"):
      raise ValueError(
        "this is Next-DiT as it was before 28 May 2024, with shifts and the "
        "gate inside the norm: the original cannot load it any more, nor "
        "can we. Use a newer checkpoint"
      )
    return {"separators": seen.has("eol_token"), "final_shift": final == 2}
  if steering == 2:
    scaled = seen.has_block("attention_norm1.weight")
    return NEXT_DIT | {"pre_norm_scale": scaled, "final_shift": final == 2}
  raise ValueError(
    f"adaLN_modulation.1.weight has {rows} rows for {sublayers} sublayers of "
    f"width {width}: neither Flag-DiT (3 vectors each) nor Next-DiT (2)"
  )


def _sigma(seen: Seen, cfg: ModelConfig) -> bool:
  rows = seen["final_layer.linear.weight"][0]
  if rows == 2 * cfg.patch_dim:
    return True
  if rows == cfg.patch_dim:
    return False
  raise ValueError(
    f"final_layer.linear.weight has {rows} rows; patches of {cfg.patch} with "
    f"{cfg.channels} channels need {cfg.patch_dim}, or twice that with "
    "learn_sigma. If patch_size is not 2, name it in model_args"
  )
