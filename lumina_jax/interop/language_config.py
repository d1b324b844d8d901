"""The config.json of a language model, read as `LanguageConfig`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lumina_jax.encoders.language_config import LanguageConfig

FAMILIES = ("llama", "gemma", "gemma2", "qwen3")
ACTIVATIONS = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
}
# What a config.json may say only in vain.
REFUSED = (
  "attention_bias",
  "mlp_bias",
  "use_bidirectional_attention",
  "use_sliding_window",
  "quantization_config",
)


def language_config(
  values: Mapping[str, Any], hidden: str, dtype: str = "float32"
) -> LanguageConfig:
  """The model of a config.json.

  Args:
    values: of config.json, as transformers 4 or 5 writes it.
    hidden: "last" or "penultimate".
    dtype: to compute in.

  Raises:
    ValueError: if its model_type is none of FAMILIES, it lacks a value, or
      asks for what these models do not have.
  """
  family = values.get("model_type")
  if family not in FAMILIES:
    raise ValueError(
      f"config.json is of model_type {family!r}; there may be "
      f"{', '.join(FAMILIES)}"
    )
  for name in REFUSED:
    if values.get(name):
      raise ValueError(
        f"config.json says {name} = {values[name]!r}, which is not supported"
      )
  width, heads = _value(values, "hidden_size"), _heads(values)
  head_dim = values.get("head_dim") or width // heads
  gemma = family in ("gemma", "gemma2")
  theta, factor = _rope(values)
  cfg = LanguageConfig(
    vocab=_value(values, "vocab_size"),
    width=width,
    depth=_value(values, "num_hidden_layers"),
    heads=heads,
    kv_heads=values.get("num_key_value_heads") or heads,
    head_dim=head_dim,
    ffn_width=_value(values, "intermediate_size"),
    activation=_activation(family, values),
    norm_eps=float(_value(values, "rms_norm_eps")),
    norm_offset=float(gemma),
    embed_scale=math.sqrt(width) if gemma else 1.0,
    rope_theta=theta,
    rope_factor=factor,
    qk_norm=family == "qwen3",
    hidden=hidden,
    dtype=dtype,
    **_scores(family, values, head_dim),
  )
  _check_layer_types(cfg, values)
  return cfg


def _value(values: Mapping[str, Any], name: str) -> Any:
  if name not in values:
    raise ValueError(f"config.json lacks {name!r}")
  return values[name]


def _heads(values: Mapping[str, Any]) -> int:
  return _value(values, "num_attention_heads")


def _activation(family: str, values: Mapping[str, Any]) -> str:
  field = "hidden_activation" if family == "gemma2" else "hidden_act"
  found = _value(values, field)
  if family == "gemma" and found == "gelu":
    found = "gelu_pytorch_tanh"  # What Google's first files meant by it.
  if found not in ACTIVATIONS:
    raise ValueError(
      f"config.json says {field} = {found!r}; there may be "
      f"{', '.join(ACTIVATIONS)}"
    )
  return ACTIVATIONS[found]


def _scores(
  family: str, values: Mapping[str, Any], head_dim: int
) -> dict[str, Any]:
  """What attention does with its scores, and Gemma-2 beside it."""
  if family != "gemma2":
    return {"query_scale": head_dim**-0.5}
  return {
    "query_scale": _value(values, "query_pre_attn_scalar") ** -0.5,
    "score_cap": float(_value(values, "attn_logit_softcapping") or 0),
    "window": _value(values, "sliding_window") or 0,
    "post_norms": True,
  }


def _rope(values: Mapping[str, Any]) -> tuple[float, float]:
  """Base of the rotary angles, and what positions are divided by."""
  # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
  said = values.get("rope_parameters") or values.get("rope_scaling") or {}
  theta = said.get("rope_theta") or values.get("rope_theta") or 1e4
  kind = said.get("rope_type") or said.get("type") or "default"
  if kind not in ("default", "linear"):
    raise ValueError(
      f"config.json scales RoPE by the rule {kind!r}; there may be default, "
      "linear"
    )
  if said.get("partial_rotary_factor") not in (None, 1):
    raise ValueError(
      "config.json says partial_rotary_factor = "
      f"{said['partial_rotary_factor']!r}, which is not supported"
    )
  factor = float(_value(said, "factor")) if kind == "linear" else 1.0
  return float(theta), factor


def _check_layer_types(cfg: LanguageConfig, values: Mapping[str, Any]) -> None:
  """Refuses another order of windows than the one that `window` means."""
  full = "full_attention"
  first = "sliding_attention" if cfg.window else full
  expected = [full if i % 2 else first for i in range(cfg.depth)]
  found = values.get("layer_types") or expected
  if found != expected:
    raise ValueError(
      f"config.json says layer_types = {found}; there may be a sliding window "
      "in every other layer, from the first, of Gemma-2, and nowhere else"
    )
