"""model_args: a network in the words of the original's constructors."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lumina_jax.backbone.config import COMPUTING, PUBLISHED, ModelConfig

# Our name of a published network -> the constructor of the original.
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


# Argument -> where we have the same number.
SAID = {
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


# Arguments that nothing in the weights contradicts.
OTHERS = (
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
KNOWN = {*SAID, *OTHERS}


def model_args(cfg: ModelConfig, known: dict[str, Any]) -> dict[str, Any]:
  """Arguments that make this network, and what demos of the original ask for.

  Args:
    cfg: the network.
    known: what the files it came from said; kept where the network does not
      decide, e.g. the text encoder and the VAE.
  """
  return _usual(cfg) | known | _sizes(cfg)


def _sizes(cfg: ModelConfig) -> dict[str, Any]:
  sizes = {
    "multiple_of": cfg.ffn_multiple,
    "ffn_dim_multiplier": None if cfg.ffn_factor == 1 else cfg.ffn_factor,
    "norm_eps": cfg.norm_eps,
    "qk_norm": cfg.qk_norm,
    "in_channels": cfg.channels,
  }
  if len(cfg.patch) == 1:
    return sizes | {
      "hidden_size": cfg.width,
      "depth": cfg.depth,
      "num_heads": cfg.heads,
      "context_dim": cfg.text_width,
      "time_scale": cfg.time_scale,
    }
  sizes |= {
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


def _usual(cfg: ModelConfig) -> dict[str, Any]:
  """What the published networks were trained with."""
  if len(cfg.patch) == 1:
    return {}
  usual = {"model": _model(cfg)}
  if cfg.num_labels:
    return usual | {"image_size": 256, "vae": "ema"}
  llama, gemma = "meta-llama/Llama-2-7b-hf", "google/gemma-2b"
  reader = llama if cfg.separators else gemma
  return usual | {
    "image_size": 1024,
    "vae": "sd3" if cfg.channels == 16 else "sdxl",
    "lm": reader,
    "tokenizer_path": reader,
  }


def _model(cfg: ModelConfig) -> str:
  """The constructor of a published network, else the folder of its family."""
  for name, published in PUBLISHED.items():
    how = {key: getattr(published, key) for key in COMPUTING}
    if dataclasses.replace(cfg, **how) == published:
      return CONSTRUCTORS[name]
  if cfg.routing:
    routers = [router.replace("token", "space") for router in cfg.routing]
    return f"Next-DiT-MoE/{routers[0] if len(routers) == 1 else 'both'}"
  if cfg.num_labels:
    return f"{'Flag' if cfg.shift else 'Next'}-DiT-ImageNet"
  return "lumina_t2i" if cfg.shift else "lumina_next_t2i"


# Flags of training scripts that only look like arguments of the network.
UNRELATED = ("batch_size", "z_channels", "scaling_factor")


def check_names(
  args: Mapping[str, Any], known: Iterable[str] = tuple(KNOWN)
) -> None:
  """Refuses a name that is nearly one we know; all others are left alone.

  Args:
    args: to look through.
    known: the names that mean something.

  Raises:
    ValueError: naming the one that was probably meant.
  """
  for name in args:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    if near and near[0] != name and name not in UNRELATED:
      raise ValueError(f"model_args: {name!r}; did you mean {near[0]!r}?")


def compare(cfg: ModelConfig, args: Mapping[str, Any]) -> None:
  """Holds arguments against the network that the weights show.

  Raises:
    ValueError: naming what each says.
  """
  wrong = [
    f"{name} = {args[name]!r}, the weights {getattr(cfg, ours)!r}"
    for name, ours in SAID.items()
    if args.get(name) is not None and args[name] != getattr(cfg, ours)
  ]
  # train.py of the original has num_classes among its flags for text, too.
  wrong = [w for w in wrong if cfg.num_labels or "num_classes" not in w]
  if wrong:
    raise ValueError(f"model_args do not fit: they say {'; '.join(wrong)}")
