"""Text to images of many shapes: Flag-DiT and Next-DiT of the published sizes.

Lumina-T2X (arXiv 2405.05945, section 2) and Lumina-Next (arXiv 2406.18583,
section 2), first stage: about 256x256 pixels in aspect ratios from 1:4 to 4:1,
latents of an eighth of that, 224 to 256 patches each, four images to a row.
Sizes are those of lumina_t2i (Flag-DiT) and lumina_next_t2i (Next-DiT; the GQA
variant was released). Other values are those of the launch script of the former
and the defaults of the latter. Only the EMA differs: here it warms up.
`flag_7b` is not a published network: it is the published 5B text-to-image
network with the width of the published 7B class-conditional one. It has 8.4
billion parameters and takes captions of up to 256 words.

  python -m lumina_jax.train --config=configs/text_to_image.py:next_2b_gqa \\
    --workdir=runs/t2i
  python -m lumina_jax.infer --workdir=runs/t2i --prompt="pattern 7"

Data are synthetic: a pattern under noise, with a caption that names it. Text
features come from the embedded encoder, which is trained along and has the
width of the features of LLaMA-2-7B and Gemma-2B that the published networks
take. Images show three channels of the latents. `configs/stages.py` has the
same networks on real images. Only `tiny` was run, on a CPU. Published sizes are
tested for their parameter counts only.
"""

import dataclasses

from ml_collections import ConfigDict

from lumina_jax.backbone.config import PUBLISHED

MODELS = {
  "flag_5b": PUBLISHED["flag_dit_t2i_5b"],
  "flag_7b": dataclasses.replace(PUBLISHED["flag_dit_t2i_5b"], width=4096),
  "next_2b": PUBLISHED["next_dit_t2i_2b"],
  "next_2b_gqa": PUBLISHED["next_dit_t2i_2b_gqa"],
  "next_2b_gqa_sd3": PUBLISHED["next_dit_t2i_2b_gqa_sd3"],
  "tiny": dataclasses.replace(
    PUBLISHED["next_dit_t2i_2b_gqa"],
    width=64,
    depth=2,
    heads=4,
    kv_heads=2,
    cond_width=64,
    text_width=64,
    ffn_multiple=32,
    dtype="float32",
  ),
}

# Heights and widths in patches: 7 of the original's 49 for 256 patches.
BUCKETS = ((8, 32), (11, 23), (14, 18), (16, 16), (18, 14), (23, 11), (32, 8))
IMAGES = 4  # Images of a row.
WORDS = 128  # Longest caption.
LONG_WORDS = 256  # Longest caption of the largest network.


def get_config(variant: str = "next_2b_gqa") -> ConfigDict:
  """Variants: the names of `MODELS`."""
  if variant not in MODELS:
    raise ValueError(f"unknown variant {variant!r}: use one of {[*MODELS]}")
  model = MODELS[variant]
  flag = variant in ("flag_5b", "flag_7b")
  words = LONG_WORDS if variant == "flag_7b" else WORDS
  # Flag-DiT adds a token to each of at most 32 lines of patches.
  tokens = 288 if flag else 256
  config = ConfigDict()
  config.medium = "image"
  config.seed = 0
  config.init_from = ""
  config.model = ConfigDict(dataclasses.asdict(model))
  config.text_encoder = ConfigDict(
    dict(width=model.text_width, byte_width=32, word_bytes=16, max_words=words)
  )
  config.data = ConfigDict(
    dict(
      sizes=latents(BUCKETS, model.patch),
      records_per_size=2048,
      classes=1000,
      caption="pattern {}",
      condition_dropout=0.1,
      signal=0.8,
      row_tokens=IMAGES * tokens,
      row_words=IMAGES * words,
      row_samples=IMAGES,
    )
  )
  config.objective = ConfigDict(
    dict(path="linear", prediction="velocity", weight="none")
  )
  config.time = ConfigDict(
    dict(name="uniform", low=0.0, high=1.0, shift=1.0, base_tokens=0)
  )
  config.optimizer = ConfigDict(
    dict(
      learning_rate=1e-4,
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
      steps=3_000_000 if flag else 100_000,
      batch_rows=(512 if flag else 256) // IMAGES,
      log_every=100,
      checkpoint_every=20_000 if flag else 50_000,
      keep_checkpoints=3,
      sample_every=10_000,
      sample_prompts=("pattern 7", "pattern 42", "pattern 207", ""),
      samples_per_prompt=2,
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=1, fsdp=-1, context=1, tensor=1,
      dcn_data=1, dcn_fsdp=1, dcn_context=1, dcn_tensor=1,
    )
  )  # fmt: skip
  config.sampling = sampling()
  config.sizes = sizes(tokens, words)
  if variant == "tiny":
    shrink(config)
  return config


def sampling() -> ConfigDict:
  """Midpoint steps, as in the original."""
  return ConfigDict(
    dict(
      solver="midpoint",
      num_inference_steps=20,
      guidance_scale=4.0,
      shift=1.0,
    )
  )


def sizes(tokens: int, words: int) -> ConfigDict:
  """256 pixels a side.

  Args:
    tokens: tokens of the largest image of 256 x 256 pixels.
    words: words of the longest caption.
  """
  return ConfigDict(
    dict(
      default=(32, 32),
      rule="fixed",
      # One image of 256, 512 or 1024 pixels a side.
      ladder=tuple((side**2 * tokens, words, 1) for side in (1, 2, 4)),
      rows=8,
    )
  )


def latents(buckets, patch) -> tuple[tuple[int, int], ...]:
  """Converts sizes in patches to sizes in latents."""
  return tuple(
    (rows * patch[0], columns * patch[1]) for rows, columns in buckets
  )


def shrink(config: ConfigDict) -> None:
  """Sixteen patches, ten patterns, 600 steps: a minute on a CPU."""
  config.text_encoder.max_words = 8
  config.data.update(
    sizes=latents(((2, 8), (3, 5), (4, 4), (5, 3), (8, 2)), (2, 2)),
    records_per_size=128,
    classes=10,
    row_tokens=IMAGES * 16,
    row_words=IMAGES * 8,
  )
  config.optimizer.update(learning_rate=6e-3, ema_decay=0.99)
  config.training.update(
    steps=600,
    batch_rows=16,
    log_every=10,
    checkpoint_every=300,
    sample_every=300,
    sample_prompts=("pattern 3", "pattern 7", ""),
  )
  config.sizes.update(default=(8, 8), ladder=((16, 8, 1), (64, 32, 4)), rows=4)
