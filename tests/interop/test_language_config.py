"""config.json of language models, as transformers 4 and 5 write it."""

import pytest
from support.language_folder import HEADS, LLAMA, WIDTH

from lumina_jax.encoders.language import LanguageConfig
from lumina_jax.interop.language_config import language_config

# As transformers 4 wrote it for Gemma-2B.
GEMMA_2B = {
  "model_type": "gemma",
  "attention_bias": False,
  "head_dim": 256,
  "hidden_act": "gelu",
  "hidden_activation": None,
  "hidden_size": 2048,
  "intermediate_size": 16384,
  "num_attention_heads": 8,
  "num_hidden_layers": 18,
  "num_key_value_heads": 1,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 10000.0,
  "vocab_size": 256000,
}
GEMMA_2_2B = GEMMA_2B | {
  "model_type": "gemma2",
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
QWEN3_4B = {
  "model_type": "qwen3",
  "attention_bias": False,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 2560,
  "intermediate_size": 9728,
  "max_window_layers": 36,
  "num_attention_heads": 32,
  "num_hidden_layers": 36,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "use_sliding_window": False,
  "vocab_size": 151936,
}


def test_the_published_models():
  """The models that Lumina and its successors use."""
  gemma = language_config(GEMMA_2B, "penultimate")
  assert gemma == LanguageConfig(
    vocab=256000,
    width=2048,
    depth=18,
    heads=8,
    kv_heads=1,
    head_dim=256,
    ffn_width=16384,
    activation="gelu_tanh",
    norm_eps=1e-6,
    query_scale=1 / 16,
    norm_offset=1.0,
    embed_scale=2048**0.5,
  )
  gemma_2 = language_config(GEMMA_2_2B, "penultimate")
  assert (gemma_2.score_cap, gemma_2.post_norms) == (50.0, True)
  assert gemma_2.windows[:3] == (4096, 1 << 30, 4096)
  assert (len(gemma_2.windows), gemma_2.query_scale) == (25, 1 / 16)
  qwen = language_config(QWEN3_4B, "last")
  assert (qwen.qk_norm, qwen.norm_offset, qwen.embed_scale) == (True, 0, 1)
  assert (qwen.rope_theta, qwen.head_dim, qwen.window) == (1e6, 128, 0)


def test_defaults_of_old_files():
  values = {
    key: value
    for key, value in LLAMA.items()
    if key not in ("num_key_value_heads", "head_dim", "rope_theta")
  }
  cfg = language_config(values, "last")
  assert (cfg.kv_heads, cfg.head_dim) == (HEADS, WIDTH // HEADS)
  assert (cfg.rope_theta, cfg.rope_factor) == (1e4, 1.0)


@pytest.mark.parametrize(
  ("values", "theta", "factor"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 20000, 4),
    ({"rope_scaling": {"rope_type": "default"}}, 20000, 1),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7, 1),
    (
      {
        "rope_parameters": {
          "rope_type": "linear",
          "rope_theta": 7.0,
          "factor": 2.0,
        }
      },
      7,
      2,
    ),
  ],
)
def test_keys_of_rope(values, theta, factor):
  cfg = language_config(LLAMA | values, "last")
  assert (cfg.rope_theta, cfg.rope_factor) == (theta, factor)


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (LLAMA | {"model_type": "mistral"}, "'mistral'; .* llama, gemma, gemma2"),
    ({}, "model_type None"),
    (LLAMA | {"rope_scaling": LLAMA_3}, "rope_type 'llama3'"),
    (LLAMA | {"attention_bias": True}, "attention_bias = True"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias = True"),
    (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    (
      LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}},
      "partial_rotary_factor = 0.5",
    ),
    (GEMMA_2B | {"use_bidirectional_attention": True}, "bidirectional"),
    (
      GEMMA_2_2B | {"layer_types": ["sliding_attention"] * 26},
      "layer_types",
    ),
    (QWEN3_4B | {"use_sliding_window": True}, "use_sliding_window = True"),
    (
      {k: v for k, v in GEMMA_2_2B.items() if k != "query_pre_attn_scalar"},
      "lacks 'query_pre_attn_scalar'",
    ),
    ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "'vocab_size'"),
  ],
)
def test_models_that_are_not_supported(values, message):
  with pytest.raises(ValueError, match=message):
    language_config(values, "last")
