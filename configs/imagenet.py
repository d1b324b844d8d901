"""Class-conditional images: Flag-DiT, Next-DiT and Next-DiT-MoE of any size.

Lumina-T2X (arXiv 2405.05945, section 2) and Lumina-Next (arXiv 2406.18583,
section 2) on ImageNet at 256x256: latents 32x32x4, 256 tokens. Sizes are those
of the original's Flag-DiT-ImageNet, Next-DiT-ImageNet and Next-DiT-MoE, other
values those of its launch scripts. Only the EMA differs: here it warms up.

  python -m lumina_jax.train --config=configs/imagenet.py:next_600m \\
    --workdir=runs/imagenet
  python -m lumina_jax.infer --workdir=runs/imagenet --prompt=207

Data are synthetic: a pattern for each class under noise. Nothing was trained on
ImageNet, and images show three channels of the latents. Only `tiny` was run, on
a CPU. Published sizes are tested for their parameter counts only. To train on
ImageNet, encode a folder whose captions are class numbers (`python -m
lumina_jax.encode --vae=...`), and replace `data` by `configs.stages.images` of
its shards.
"""

import dataclasses

from ml_collections import ConfigDict

from lumina_jax.backbone.config import PUBLISHED

MODELS = {
  "flag_600m": PUBLISHED["flag_dit_imagenet_600m"],
  "flag_3b": PUBLISHED["flag_dit_imagenet_3b"],
  "flag_7b": PUBLISHED["flag_dit_imagenet_7b"],
  "next_600m": PUBLISHED["next_dit_imagenet_600m"],
  "next_2b": PUBLISHED["next_dit_imagenet_2b"],
  "next_3b": PUBLISHED["next_dit_imagenet_3b"],
  "next_7b": PUBLISHED["next_dit_imagenet_7b"],
  "moe_time_600m": PUBLISHED["next_dit_moe_time_600m"],
  "moe_token_600m": PUBLISHED["next_dit_moe_token_600m"],
  "moe_both_600m": PUBLISHED["next_dit_moe_both_600m"],
  "tiny": dataclasses.replace(
    PUBLISHED["next_dit_imagenet_600m"],
    width=64,
    depth=2,
    heads=4,
    kv_heads=4,
    cond_width=64,
    num_labels=10,
    ffn_multiple=32,
    dtype="float32",
  ),
}


def get_config(variant: str = "next_600m") -> ConfigDict:
  """Variants: the names of `MODELS`."""
  if variant not in MODELS:
    raise ValueError(f"unknown variant {variant!r}: use one of {[*MODELS]}")
  model = MODELS[variant]
  config = ConfigDict()
  config.medium = "image"
  config.seed = 0
  config.init_from = ""
  config.model = ConfigDict(dataclasses.asdict(model))
  config.data = ConfigDict(
    dict(
      sizes=((32, 32),),
      records_per_size=10_240,
      classes=model.num_labels,
      caption="{}",
      condition_dropout=0.1,
      signal=0.8,
      row_tokens=256,
      row_words=1,
      row_samples=1,
    )
  )
  config.objective = ConfigDict(
    dict(path="linear", prediction="velocity", weight="none")
  )
  config.time = ConfigDict(
    dict(name="logit_normal", mean=0.0, std=1.0, shift=1.0, base_tokens=0)
  )
  config.optimizer = ConfigDict(
    dict(
      learning_rate=5e-4,
      warmup_steps=0,
      decay="constant",
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=2.0,
      ema_decay=0.9999,
    )
  )
  config.training = ConfigDict(
    dict(
      steps=3_000_000,
      batch_rows=256,
      log_every=100,
      checkpoint_every=10_000,
      keep_checkpoints=3,
      sample_every=10_000,
      sample_prompts=("207", "360", "387", "974", "88", "979", "417", "279"),
      samples_per_prompt=2,
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=1, fsdp=-1, context=1, tensor=1,
      dcn_data=1, dcn_fsdp=1, dcn_context=1, dcn_tensor=1,
    )
  )  # fmt: skip
  config.sampling = ConfigDict(
    dict(
      solver="midpoint",
      num_inference_steps=20,
      guidance_scale=4.0,
      shift=1.0,
    )
  )
  config.sizes = ConfigDict(
    dict(
      default=(32, 32),
      rule="fixed",
      ladder=((256, 1, 1), (1024, 1, 1), (4096, 1, 1)),
      rows=16,
    )
  )
  if variant == "tiny":
    shrink(config)
  return config


def shrink(config: ConfigDict) -> None:
  """Latents 8x8, ten classes, 600 steps: a minute on a CPU."""
  config.data.update(sizes=((8, 8),), records_per_size=512, row_tokens=16)
  config.optimizer.update(learning_rate=6e-3, ema_decay=0.99)
  config.training.update(
    steps=600,
    batch_rows=64,
    log_every=10,
    checkpoint_every=300,
    sample_every=300,
    sample_prompts=("0", "1", "2", "3", "4", "5", "6", "7"),
  )
  config.sizes.update(default=(8, 8), ladder=((16, 1, 1),))
