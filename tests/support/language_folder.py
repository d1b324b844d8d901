"""A small random LLaMA in a Hugging Face folder."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

DEPTH, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 3, 16, 4, 2, 8, 24, 32
# As transformers 4 wrote it for LLaMA-2, with other sizes.
LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": WIDTH,
  "intermediate_size": FFN,
  "num_hidden_layers": DEPTH,
  "num_attention_heads": HEADS,
  "num_key_value_heads": KV_HEADS,
  "head_dim": HEAD_DIM,
  "vocab_size": VOCAB,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-05,
  "rope_scaling": None,
  "rope_theta": 20000.0,
  "pretraining_tp": 1,
  "tie_word_embeddings": False,
  "torch_dtype": "float16",
}


def tensors(prefix="model.", kv_heads=KV_HEADS) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  shapes = {"embed_tokens": (VOCAB, WIDTH), "norm": (WIDTH,)}
  for i in range(DEPTH):
    shapes |= {
      f"layers.{i}.self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.k_proj": (kv_heads * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.v_proj": (kv_heads * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
      f"layers.{i}.mlp.gate_proj": (FFN, WIDTH),
      f"layers.{i}.mlp.up_proj": (FFN, WIDTH),
      f"layers.{i}.mlp.down_proj": (WIDTH, FFN),
      f"layers.{i}.input_layernorm": (WIDTH,),
      f"layers.{i}.post_attention_layernorm": (WIDTH,),
    }
  found = {
    f"{prefix}{name}.weight": rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  if prefix:
    found["lm_head.weight"] = rng.standard_normal((VOCAB, WIDTH), np.float32)
  return found


def write(folder, found=None, config=LLAMA) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors() if found is None else found, folder / "model.safetensors")
  return folder


def shard(folder, found=None) -> pathlib.Path:
  """Writes a folder of three files and an index."""
  found = tensors() if found is None else found
  write(folder, {})
  (folder / "model.safetensors").unlink()
  index = {}
  for part in range(3):
    name = f"model-{part + 1:05d}-of-00003.safetensors"
    keys = list(found)[part::3]
    save_file({key: found[key] for key in keys}, folder / name)
    index |= dict.fromkeys(keys, name)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": index})
  )
  return folder
