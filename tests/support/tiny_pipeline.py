"""A tiny random text-to-image pipeline in folders, without PyTorch."""

import dataclasses
import json

import numpy as np
from safetensors.numpy import save_file
from support.autoencoder import random_params as random_vae
from support.families import FAMILIES, random_params
from support.tokenizer import write_tokenizer

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.vae import VaeConfig
from lumina_jax.interop import save_pytorch
from lumina_jax.interop.vae import save_vae

VOCAB = 400
NEXT, FLAG = FAMILIES["next_text"], FAMILIES["flag_text"]
WIDTH = NEXT.text_width
VAE = VaeConfig(widths=(8, 8), norm_groups=4, layers=1, scaling_factor=0.5)
FACTOR = VAE.factor
SIDE = 8  # Of the latents of the square that they were trained on.
PROMPT = "an orange cat sits on a wooden chair"
GEMMA = {
  "architectures": ["GemmaForCausalLM"],
  "model_type": "gemma",
  "attention_bias": False,
  "head_dim": 8,
  "hidden_act": "gelu_pytorch_tanh",
  "hidden_size": WIDTH,
  "intermediate_size": 32,
  "num_attention_heads": 2,
  "num_hidden_layers": 2,
  "num_key_value_heads": 1,
  "rms_norm_eps": 1e-6,
  "rope_theta": 10000.0,
  "vocab_size": VOCAB,
}
LLAMA = GEMMA | {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_act": "silu",
}


def write_language(folder, config=None):
  """A language model as Hugging Face keeps it."""
  config = GEMMA | (config or {})
  width, heads = config["hidden_size"], config["num_attention_heads"]
  inner, ffn = heads * config["head_dim"], config["intermediate_size"]
  shapes = {"embed_tokens": (config["vocab_size"], width), "norm": (width,)}
  for i in range(config["num_hidden_layers"]):
    layer = f"layers.{i}"
    shapes |= {
      f"{layer}.self_attn.q_proj": (inner, width),
      f"{layer}.self_attn.k_proj": (config["head_dim"], width),
      f"{layer}.self_attn.v_proj": (config["head_dim"], width),
      f"{layer}.self_attn.o_proj": (width, inner),
      f"{layer}.mlp.gate_proj": (ffn, width),
      f"{layer}.mlp.up_proj": (ffn, width),
      f"{layer}.mlp.down_proj": (width, ffn),
      f"{layer}.input_layernorm": (width,),
      f"{layer}.post_attention_layernorm": (width,),
    }
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {
    f"model.{name}.weight": 0.3 * rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def write_vae(folder, **changes):
  """An autoencoder whose pictures are neither flat nor clipped."""
  cfg = dataclasses.replace(VAE, **changes)
  params = random_vae(cfg)
  params["decoder"]["last"] = {
    name: 0.2 * x for name, x in params["decoder"]["last"].items()
  }
  save_vae(Autoencoder(cfg, params), folder)
  return folder


def write_diffusers(folder):
  """A folder of diffusers' LuminaPipeline."""
  params = random_params(NEXT)
  save_pytorch(params, NEXT, folder / "transformer", layout="diffusers")
  path = folder / "transformer" / "config.json"
  values = json.loads(path.read_text()) | {"sample_size": SIDE}
  path.write_text(json.dumps(values))
  write_vae(folder / "vae")
  write_language(folder / "text_encoder")
  write_tokenizer(folder / "tokenizer", vocab=VOCAB)
  (folder / "model_index.json").write_text(
    json.dumps({"_class_name": "LuminaPipeline"})
  )
  (folder / "LICENSE.md").write_text("Terms of the network.")
  (folder / "text_encoder" / "NOTICE").write_text("Terms of the words.")
  (folder / "vae" / "LICENSE").write_text("Terms of the pixels.")
  return folder


def write_original(folder, cfg=NEXT, **args):
  """A folder of the original code; its encoders lie elsewhere."""
  args = {"image_size": SIDE * FACTOR} | args
  save_pytorch(random_params(cfg), cfg, folder, model_args=args)
  return folder
