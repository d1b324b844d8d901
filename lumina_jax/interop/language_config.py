"""Reads the config.json of a language model as `LanguageConfig`."""

import math
from collections.abc import Mapping
from typing import Any

from lumina_jax.encoders.language_config import LanguageConfig
from lumina_jax.interop.hugging_face import value_of

FAMILIES = ("llama", "gemma", "gemma2", "qwen3")
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# Options that must be unset or false.
UNSUPPORTED = (
  "attention_bias",
  "mlp_bias",
  "use_bidirectional_attention",
  "use_sliding_window",
  "quantization_config",
)


def language_config(
  values: Mapping[str, Any], hidden: str, dtype: str = "float32"
) -> LanguageConfig:
  """Reads the model from a config.json.

  Args:
    values: the values of config.json, as transformers 4 or 5 writes it.
    hidden: "last" or "penultimate".
    dtype: dtype of the computation.

  Raises:
    ValueError: if the model_type is not one of FAMILIES, a value is missing or
      an option is not supported.
  """
  family = values.get("model_type")
  if family not in FAMILIES:
    raise ValueError(
      f"config.json has model_type {family!r}; supported are "
      f"{', '.join(FAMILIES)}"
    )
  for name in UNSUPPORTED:
    if values.get(name):
      raise ValueError(
        f"config.json has {name} = {values[name]!r}, which is not supported"
      )
  width = value_of(values, "hidden_size")
  heads = value_of(values, "num_attention_heads")
  head_dim = values.get("head_dim") or width // heads
  gemma = family in ("gemma", "gemma2")
  theta, factor = _rope(values)
  cfg = LanguageConfig(
    vocab=value_of(values, "vocab_size"),
    width=width,
    depth=value_of(values, "num_hidden_layers"),
    heads=heads,
    kv_heads=values.get("num_key_value_heads") or heads,
    head_dim=head_dim,
    ffn_width=value_of(values, "intermediate_size"),
    activation=_activation(family, values),
    norm_eps=float(value_of(values, "rms_norm_eps")),
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


def _activation(family: str, values: Mapping[str, Any]) -> str:
  field = "hidden_activation" if family == "gemma2" else "hidden_act"
  found = value_of(values, field)
  if family == "gemma" and found == "gelu":
    found = "gelu_pytorch_tanh"  # Google's first files called it gelu.
  if found not in ACTIVATIONS:
    raise ValueError(
      f"config.json has {field} = {found!r}; supported are "
      f"{', '.join(ACTIVATIONS)}"
    )
  return ACTIVATIONS[found]


def _scores(
  family: str, values: Mapping[str, Any], head_dim: int
) -> dict[str, Any]:
  """Fields of the attention scores, and other fields of Gemma-2."""
  if family != "gemma2":
    return {"query_scale": head_dim**-0.5}
  return {
    "query_scale": value_of(values, "query_pre_attn_scalar") ** -0.5,
    "score_cap": float(value_of(values, "attn_logit_softcapping") or 0),
    "window": value_of(values, "sliding_window") or 0,
    "post_norms": True,
  }


def _rope(values: Mapping[str, Any]) -> tuple[float, float]:
  """Base of the rotary angles, and the factor that divides positions."""
  # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
  rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
  theta = rope.get("rope_theta") or values.get("rope_theta") or 1e4
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in ("default", "linear"):
    raise ValueError(
      f"config.json has rope_type {kind!r}; supported are default, linear"
    )
  if rope.get("partial_rotary_factor") not in (None, 1):
    raise ValueError(
      "config.json has partial_rotary_factor = "
      f"{rope['partial_rotary_factor']!r}, which is not supported"
    )
  factor = float(value_of(rope, "factor")) if kind == "linear" else 1.0
  return float(theta), factor


def _check_layer_types(cfg: LanguageConfig, values: Mapping[str, Any]) -> None:
  """Checks that sliding windows are where `cfg.window` places them."""
  full = "full_attention"
  first = "sliding_attention" if cfg.window else full
  expected = [full if i % 2 else first for i in range(cfg.depth)]
  found = values.get("layer_types") or expected
  if found != expected:
    raise ValueError(
      f"config.json has layer_types = {found}; only Gemma-2 may have sliding "
      "windows, in every other layer from the first"
    )
