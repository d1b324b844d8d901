"""A tiny random LuminaPipeline of diffusers, on a disk."""

import diffusers
import torch
import transformers
from support.tokenizer import write_tokenizer

TRANSFORMER = dict(
  sample_size=8,  # Trained on 64 x 64 pixels.
  patch_size=2,
  in_channels=4,
  hidden_size=32,
  num_layers=2,
  num_attention_heads=2,
  num_kv_heads=1,
  multiple_of=16,
  cross_attention_dim=24,
)
VAE = dict(
  block_out_channels=(8, 16, 16, 16),
  layers_per_block=1,
  norm_num_groups=4,
  latent_channels=4,
  scaling_factor=0.13025,
  down_block_types=("DownEncoderBlock2D",) * 4,
  up_block_types=("UpDecoderBlock2D",) * 4,
)
GEMMA = dict(
  vocab_size=400,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=16,
  intermediate_size=48,
  max_position_embeddings=512,
)


def randomise(model, std=0.3, **scales):
  """Random weights, none of them zero, one or like another."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim > 1:
        parameter.normal_(std=std)
      else:
        parameter.normal_(mean=float("norm" in name and "bias" not in name))
      for part, scale in scales.items():
        if part in name:
          parameter *= scale
  return model.eval()


def make(folder, scheduler=None, **changes):
  """Writes a pipeline to a folder, and returns it as diffusers loads it."""
  net = randomise(
    diffusers.LuminaNextDiT2DModel(**TRANSFORMER | changes), norm_out=0.4
  )
  with torch.no_grad():  # As published: one query for both attentions.
    for layer in net.layers:
      layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
      layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
  vae = randomise(diffusers.AutoencoderKL(**VAE), std=0.15, conv_out=0.2)
  gemma = transformers.GemmaModel(transformers.GemmaConfig(**GEMMA))
  write_tokenizer(folder / "tokenizer")
  pipe = diffusers.LuminaPipeline(
    net,
    diffusers.FlowMatchEulerDiscreteScheduler(**scheduler or {}),
    vae,
    randomise(gemma),
    transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
  )
  pipe.save_pretrained(folder)
  return load(folder)


def load(folder):
  """A pipeline as a user of diffusers loads it, without progress bars."""
  pipe = diffusers.LuminaPipeline.from_pretrained(folder)
  pipe.set_progress_bar_config(disable=True)
  return pipe
