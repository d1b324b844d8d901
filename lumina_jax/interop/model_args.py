"""model_args: arguments of the original's constructors.

The original stores them in `model_args.pth` beside the weights.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lumina_jax.backbone.config import COMPUTING, PUBLISHED, ModelConfig
from lumina_jax.files.suggest import did_you_mean

# Published image network -> its constructor in the original code.
CONSTRUCTORS = {
  "flag_dit_t2i_5b": "DiT_Llama_5B_patch2",
  "next_dit_t2i_2b": "NextDiT_2B_patch2",
  "next_dit_t2i_2b_gqa": "NextDiT_2B_GQA_patch2",
  "next_dit_t2i_2b_gqa_sd3": "NextDiT_2B_GQA_patch2",
  "flag_dit_imagenet_600m": "DiT_Llama_600M_patch2",
  "flag_dit_imagenet_3b": "DiT_Llama_3B_patch2",
  "flag_dit_imagenet_7b": "DiT_Llama_7B_patch2",
  "next_dit_imagenet_600m": "DiT_Llama_600M_patch2",
  "next_dit_imagenet_2b": "DiT_Llama_2B_patch2",
  "next_dit_imagenet_3b": "DiT_Llama_3B_patch2",
  "next_dit_imagenet_7b": "DiT_Llama_7B_patch2",
  "next_dit_moe_time_600m": "DiT_Llama_600M_patch2",
  "next_dit_moe_time_600m_gqa": "DiT_Llama_600M_GQA_patch2",
  "next_dit_moe_time_2b": "DiT_Llama_2B_patch2",
  "next_dit_moe_token_600m": "DiT_Llama_600M_patch2_Spatial",
  "next_dit_moe_both_600m": "DiT_Llama_600M_patch2_Both",
}
# Arguments that the weights determine -> our field.
FIELDS = {
  "dim": "width",
  "hidden_size": "width",
  "n_layers": "depth",
  "depth": "depth",
  "n_heads": "heads",
  "num_heads": "heads",
  "n_kv_heads": "kv_heads",
  "in_channels": "channels",
  "cap_feat_dim": "text_width",
  "context_dim": "text_width",
  "num_classes": "num_labels",
  "qk_norm": "qk_norm",
}
# Arguments that the weights do not contradict.
OTHER_ARGS = (
  "model",
  "patch_size",
  "norm_eps",
  "multiple_of",
  "ffn_dim_multiplier",
  "learn_sigma",
  "rope_scaling_factor",
  "ntk_factor",
  "scale_factor",
  "time_scale",
  "num_experts",
  "num_experts_per_tok",
)
KNOWN_ARGS = (*FIELDS, *OTHER_ARGS)
# Flags of training scripts that resemble a known argument.
UNRELATED_FLAGS = ("batch_size", "z_channels", "scaling_factor")


def model_args(
  cfg: ModelConfig, medium: str, stored: Mapping[str, Any]
) -> dict[str, Any]:
  """Arguments that make a network, and those that the original's demos need.

  Args:
    cfg: the network.
    medium: the medium that it generates.
    stored: arguments that its files held. They are kept where the network does
      not determine them, e.g. the text encoder and the VAE.
  """
  if medium == "audio":
    return dict(stored) | _audio_sizes(cfg)
  return _published_args(cfg) | dict(stored) | _image_sizes(cfg)


def _common_sizes(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "multiple_of": cfg.ffn_multiple,
    "ffn_dim_multiplier": None if cfg.ffn_factor == 1 else cfg.ffn_factor,
    "norm_eps": cfg.norm_eps,
    "qk_norm": cfg.qk_norm,
    "in_channels": cfg.channels,
  }


def _audio_sizes(cfg: ModelConfig) -> dict[str, Any]:
  return _common_sizes(cfg) | {
    "hidden_size": cfg.width,
    "depth": cfg.depth,
    "num_heads": cfg.heads,
    "context_dim": cfg.text_width,
    "time_scale": cfg.time_scale,
  }


def _image_sizes(cfg: ModelConfig) -> dict[str, Any]:
  sizes = _common_sizes(cfg) | {
    "patch_size": cfg.patch[0],
    "dim": cfg.width,
    "n_layers": cfg.depth,
    "n_heads": cfg.heads,
    "n_kv_heads": cfg.kv_heads,
    "learn_sigma": True,
    "model_parallel_size": 1,
    "rope_scaling_factor": cfg.rope_linear,
    "ntk_factor": cfg.rope_ntk if cfg.raster else 1.0,
    "scale_factor": 1.0 if cfg.raster else cfg.rope_ntk,
  }
  if cfg.routing:
    sizes |= {
      "num_experts": cfg.experts,
      "num_experts_per_tok": cfg.active_experts,
    }
  if cfg.num_labels:
    return sizes | {"num_classes": cfg.num_labels}
  return sizes | {"cap_feat_dim": cfg.text_width}


def _published_args(cfg: ModelConfig) -> dict[str, Any]:
  """Arguments beside the network that the published image networks have."""
  args = {"model": _constructor(cfg)}
  if cfg.num_labels:
    return args | {"image_size": 256, "vae": "ema"}
  llama, gemma = "meta-llama/Llama-2-7b-hf", "google/gemma-2b"
  language_model = llama if cfg.separators else gemma
  return args | {
    "image_size": 1024,
    "vae": "sd3" if cfg.channels == 16 else "sdxl",
    "lm": language_model,
    "tokenizer_path": language_model,
  }


def _constructor(cfg: ModelConfig) -> str:
  """The constructor of a published network, else the folder of its family."""
  for name, constructor in CONSTRUCTORS.items():
    published = PUBLISHED[name]
    computing = {field: getattr(published, field) for field in COMPUTING}
    if dataclasses.replace(cfg, **computing) == published:
      return constructor
  if cfg.routing:
    routers = [router.replace("token", "space") for router in cfg.routing]
    return f"Next-DiT-MoE/{routers[0] if len(routers) == 1 else 'both'}"
  if cfg.num_labels:
    return f"{'Flag' if cfg.shift else 'Next'}-DiT-ImageNet"
  return "lumina_t2i" if cfg.shift else "lumina_next_t2i"


def check_arg_names(
  args: Mapping[str, Any], known: Iterable[str] = KNOWN_ARGS
) -> None:
  """Refuses names that resemble a known one; other names are ignored.

  Args:
    args: the arguments.
    known: names of the arguments that are used.

  Raises:
    ValueError: suggesting the known name.
  """
  known = tuple(known)
  for name in args:
    if name in known or name in UNRELATED_FLAGS:
      continue
    if hint := did_you_mean(name, known, cutoff=0.8):
      raise ValueError(f"model_args: {name!r}{hint}")


def check_args(cfg: ModelConfig, args: Mapping[str, Any]) -> None:
  """Checks that arguments agree with the network that the weights show.

  Raises:
    ValueError: naming both values of each argument that differs.
  """
  wrong = [
    f"{name} = {args[name]!r}, the weights {getattr(cfg, field)!r}"
    for name, field in FIELDS.items()
    if args.get(name) is not None
    and args[name] != getattr(cfg, field)
    # The original's train.py stores num_classes for text networks too.
    and (cfg.num_labels or name != "num_classes")
  ]
  if wrong:
    raise ValueError(f"model_args do not fit: they say {'; '.join(wrong)}")
