"""Detects the network behind a state dict: shapes and arguments -> ModelConfig.

Shapes come first. Arguments of the original's constructors add what shapes
leave open, and must agree with the rest.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import NEXT_DIT
from lumina_jax.interop.lumina import MEDIA
from lumina_jax.interop.model_args import check_args
from lumina_jax.interop.shapes import Shapes
from lumina_jax.interop.state_dict import StateDictShapes

# Constructors that the original's train.py offers; all of them have 32 heads.
# Files of a network with other arguments state them.
CONSTRUCTOR = re.compile(r"(DiT_Llama|NextDiT)_\w+_patch2\w*")
CONSTRUCTOR_HEADS = 32
Args = Mapping[str, Any]


class Detected(NamedTuple):
  """The network behind a state dict.

  Attributes:
    cfg: Config of the network.
    medium: Medium that it generates, a key of `lumina.MEDIA`.
    sigma: Whether its last layer has the unused sigma half.
  """

  cfg: ModelConfig
  medium: str
  sigma: bool


def detect_network(shapes: Shapes, args: Args) -> Detected:
  """Detects the network behind a state dict of the original code.

  Args:
    shapes: shape of each tensor by key.
    args: arguments of the original's constructor, or of its train.py.

  Raises:
    ValueError: naming what neither shapes nor arguments determine, or where
      the two disagree.
  """
  state = StateDictShapes(shapes)
  medium = _medium(state)
  audio = medium == "audio"
  width = _width(state)
  patch = (1,) if audio else (int(_arg(args, "patch_size", 2)),) * 2
  channels = _channels(state, medium, patch)
  heads = _heads(state, args)
  if width % heads:
    raise ValueError(f"width {width} is not divisible by n_heads = {heads}")
  text = "cap_embedder.0.weight"
  cfg = ModelConfig(
    patch=patch,
    channels=channels,
    width=width,
    depth=state.blocks,
    heads=heads,
    kv_heads=state.block("attention.wk.weight")[0] * heads // width,
    cond_width=state["t_embedder.mlp.0.weight"][0],
    text_width=state[text][0] if text in state else 0,
    pad_token="pad_token" in state,
    num_labels=_num_labels(state),
    qk_norm=state.has_block("attention.q_norm.weight"),
    norm_eps=float(_arg(args, "norm_eps", 1e-5)),
    rope_linear=float(_arg(args, "rope_scaling_factor", 1)),
    # Flag-DiT calls it ntk_factor, Next-DiT scale_factor.
    rope_ntk=float(_arg(args, "ntk_factor", 1))
    * float(_arg(args, "scale_factor", 1)),
    zero_text_pool=not audio,
    time_scale=_time_scale(medium, args),
    **_experts(state, args, width),
    **_feed_forward(state, args, width),
    **_family(state, width),
  )
  check_args(cfg, args)
  return Detected(cfg, medium, _sigma(state, cfg))


def _arg(args: Args, name: str, default: Any) -> Any:
  """An argument; the original stores None for its defaults."""
  value = args.get(name)
  return default if value is None else value


def _medium(state: StateDictShapes) -> str:
  for medium, names in MEDIA.items():
    if f"{names.patch_embed}.weight" in state:
      return medium
  expected = " or ".join(
    f"{names.patch_embed}.weight ({medium})" for medium, names in MEDIA.items()
  )
  raise ValueError(
    f"not the state dict of a Lumina network: expected {expected}; the keys "
    f"are {state.some_keys()}"
  )


def _width(state: StateDictShapes) -> int:
  # A norm is whole on every tensor-parallel shard.
  numbered = "1" if state.has_block("attention_norm1.weight") else ""
  return state.block(f"attention_norm{numbered}.weight")[0]


def _num_labels(state: StateDictShapes) -> int:
  table = "y_embedder.embedding_table.weight"
  return state[table][0] - 1 if table in state else 0


def _channels(
  state: StateDictShapes, medium: str, patch: tuple[int, ...]
) -> int:
  key = f"{MEDIA[medium].patch_embed}.weight"
  inputs, area = state[key][1], math.prod(patch)
  if inputs % area:
    raise ValueError(
      f"{key} takes {inputs} values, not a multiple of a patch of {patch}; "
      "set patch_size in model_args"
    )
  return inputs // area


def _heads(state: StateDictShapes, args: Args) -> int:
  if state.has_block("attention.gate"):
    return state.block("attention.gate")[0]
  for name in ("n_heads", "num_heads"):
    if _arg(args, name, None) is not None:
      return int(args[name])
  if CONSTRUCTOR.fullmatch(str(_arg(args, "model", ""))):
    return CONSTRUCTOR_HEADS
  raise ValueError(
    "the weights do not show the number of heads; set it: "
    "model_args={'n_heads': 32} (--model_arg=n_heads=32), or set the "
    "constructor: model_args={'model': 'DiT_Llama_600M_patch2'}"
  )


def _time_scale(medium: str, args: Args) -> float:
  """The scale of the time that the network receives; weights do not show it."""
  scale = _arg(args, "time_scale", None)
  if scale is None and medium == "audio":
    logging.warning(
      "audio: assuming that this network receives time from 0 to 1. The "
      "published one receives steps from 0 to 999: for it, use "
      "model_args={'time_scale': 1000}"
    )
  return float(scale or 1)


def _feed_forward(
  state: StateDictShapes, args: Args, width: int
) -> dict[str, Any]:
  for name in ("feed_forward", "feed_forward_time"):
    for part in ("w1.weight", "experts.0.w1.weight"):
      if state.has_block(f"{name}.{part}"):
        hidden = state.block(f"{name}.{part}")[0]
        return ffn_fields(width, hidden, args)
  return {"ffn_multiple": state.block("feed_forward.w1.weight")[0]}


def ffn_fields(width: int, hidden: int, args: Args) -> dict[str, Any]:
  """Fields of ModelConfig that make a feed-forward of `hidden` channels.

  Raises:
    ValueError: if the arguments make another width.
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
      f"model_args do not fit: the weights have a feed-forward of {hidden} "
      f"channels; from a width of {width}, ffn_dim_multiplier = {factor} and "
      f"multiple_of = {multiple} make another"
    )
  # Narrower than 8/3 of the width: derive the factor.
  return {"ffn_multiple": 1, "ffn_factor": (hidden + 0.5) / base}


def _experts(state: StateDictShapes, args: Args, width: int) -> dict[str, Any]:
  if state.has_block("feed_forward_time.gate.weight"):
    routing, name = ("time", "token"), "feed_forward_time"
  elif state.has_block("feed_forward.gate.weight"):
    routing, name = (_router(state, args, width),), "feed_forward"
  else:
    return {}
  return {
    "routing": routing,
    "experts": state.count(f"{name}.experts.{{}}.w1.weight"),
    "active_experts": int(_arg(args, "num_experts_per_tok", 2)),
  }


def _router(state: StateDictShapes, args: Args, width: int) -> str:
  """What chooses experts, "time" or "token", by the width of the gate."""
  cond_width = state["t_embedder.mlp.0.weight"][0]
  if cond_width != width:
    inputs = state.block("feed_forward.gate.weight")[1]
    return "time" if inputs == cond_width else "token"
  model = str(_arg(args, "model", ""))
  if re.search("spatial|space|token", model, re.IGNORECASE):
    return "token"
  if "time" in model.lower() or CONSTRUCTOR.fullmatch(model):
    return "time"
  raise ValueError(
    f"the weights do not show whether time or token chooses the experts, since "
    f"both are {width} wide; set it: model_args={{'model': "
    "'Next-DiT-MoE/time'} or {'model': 'Next-DiT-MoE/space'}"
  )


def _family(state: StateDictShapes, width: int) -> dict[str, Any]:
  """Fields of Flag-DiT or Next-DiT, by the number of modulation vectors."""
  rows = state.block("adaLN_modulation.1.weight")[0]
  sublayers = 3 if state.has_block("feed_forward_time.gate.weight") else 2
  vectors = rows / width / sublayers
  final = state["final_layer.adaLN_modulation.1.weight"][0] // width
  if vectors == 3:
    if state.has_block("attention_norm2.weight"):
      raise ValueError(
        "this is a Next-DiT from before 28 May 2024, with shifts and with the "
        "gate inside the norm. The original code cannot load it any more and "
        "neither can lumina_jax; use a newer checkpoint"
      )
    return {"separators": "eol_token" in state, "final_shift": final == 2}
  if vectors == 2:
    scaled = state.has_block("attention_norm1.weight")
    return NEXT_DIT | {"pre_norm_scale": scaled, "final_shift": final == 2}
  raise ValueError(
    f"adaLN_modulation.1.weight has {rows} rows for {sublayers} sublayers of "
    f"width {width}: neither Flag-DiT (3 vectors each) nor Next-DiT (2)"
  )


def _sigma(state: StateDictShapes, cfg: ModelConfig) -> bool:
  rows = state["final_layer.linear.weight"][0]
  if rows == 2 * cfg.patch_dim:
    return True
  if rows == cfg.patch_dim:
    return False
  raise ValueError(
    f"final_layer.linear.weight has {rows} rows; patches of {cfg.patch} with "
    f"{cfg.channels} channels need {cfg.patch_dim}, or twice that with "
    "learn_sigma. If patch_size is not 2, set it in model_args"
  )
