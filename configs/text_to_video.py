"""Text to videos of many sizes and lengths: latents (frame, row, column).

Lumina-T2X (arXiv 2405.05945, section on text to video), first stage: about 32
frames of 512x512 pixels, each frame encoded as an image of an eighth of that,
patches of one frame and 2 x 2, one video of 32 thousand tokens to a row, all of
them under full attention. Flag-DiT numbers all tokens with one running index;
a nextline token ends each line of patches and a nextframe token each frame.
Next-DiT (arXiv 2406.18583, section 2) rotates a third of the channels by each
of frame, row and column. Longer or larger videos only cost more tokens: the
paper's second stage has 128 thousand, 128 such frames.

The paper trains a Flag-DiT of 2 billion parameters on features of CLIP, and
publishes neither code nor weights. Sizes here are those of text_to_image.py
with a third axis, from random weights. The batch size is the one that the paper
needed to converge (it started with 32). All other values are those of its
text-to-image network, since it gives none for video.

  python -m lumina_jax.train --config=configs/text_to_video.py:flag_7b \\
    --workdir=runs/t2v --config.mesh.context=8
  python -m lumina_jax.infer --workdir=runs/t2v --prompt="pattern 7"

Data are synthetic, as in text_to_image.py: a pattern in space and time under
noise. Images show three channels of the latents, with frames side by side. Only
`tiny` was run, on a CPU.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import text_to_image

PATCH = (1, 2, 2)
FLAG_5B = dataclasses.replace(text_to_image.MODELS["flag_5b"], patch=PATCH)

MODELS = {
  "flag_5b": FLAG_5B,
  "flag_7b": dataclasses.replace(FLAG_5B, width=4096),
  "next_2b": dataclasses.replace(text_to_image.MODELS["next_2b"], patch=PATCH),
  "tiny": dataclasses.replace(
    FLAG_5B,
    width=64,
    depth=2,
    heads=4,
    kv_heads=4,
    cond_width=64,
    text_width=64,
    ffn_multiple=32,
    dtype="float32",
  ),
}

# Frames, heights and widths in patches, with about the same number of tokens.
BUCKETS = ((8, 64, 64), (32, 24, 42), (32, 32, 32), (32, 42, 24), (64, 22, 23))
WORDS = 128  # Longest caption.


def get_config(variant: str = "flag_5b") -> ConfigDict:
  """Variants: the names of `MODELS`."""
  if variant not in MODELS:
    raise ValueError(f"unknown variant {variant!r}: use one of {[*MODELS]}")
  model = MODELS[variant]
  # Multiples of 1024, so that a row divides over many devices. Flag-DiT's
  # separators are up to 1472 tokens of a row.
  tokens = 34 * 1024 if model.separators else 32 * 1024
  config = ConfigDict()
  config.medium = "video"
  config.seed = 0
  config.init_from = ""
  config.model = ConfigDict(dataclasses.asdict(model))
  config.text_encoder = ConfigDict(
    dict(width=model.text_width, byte_width=32, word_bytes=16, max_words=WORDS)
  )
  config.data = ConfigDict(
    dict(
      sizes=latents(BUCKETS),
      records_per_size=2048,
      classes=1000,
      caption="pattern {}",
      condition_dropout=0.1,
      signal=0.8,
      row_tokens=tokens,
      row_words=WORDS,
      row_samples=1,
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
      steps=100_000,
      batch_rows=1024,
      log_every=10,
      checkpoint_every=1000,
      keep_checkpoints=3,
      sample_every=5000,
      sample_prompts=("pattern 7", "pattern 42"),
      samples_per_prompt=1,
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=1, fsdp=-1, context=1, tensor=1,
      dcn_data=1, dcn_fsdp=1, dcn_context=1, dcn_tensor=1,
    )
  )  # fmt: skip
  config.sampling = sampling()
  config.sizes = sizes(tokens)
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


def sizes(tokens: int) -> ConfigDict:
  """32 frames of 512 x 512 pixels; `tokens` is the budget of a training row."""
  return ConfigDict(
    dict(
      default=(32, 64, 64),
      rule="fixed",
      # A quarter of the trained length, all of it, and the second stage's.
      ladder=tuple((n * tokens // 4, WORDS, 1) for n in (1, 4, 16)),
      rows=1,
    )
  )


def latents(buckets) -> tuple[tuple[int, ...], ...]:
  """Converts sizes in patches to sizes in latents."""
  return tuple(
    tuple(n * p for n, p in zip(counts, PATCH, strict=True))
    for counts in buckets
  )


def shrink(config: ConfigDict) -> None:
  """Two to six frames, ten patterns, 600 steps: a minute or two on a CPU."""
  videos, tokens = 4, 42
  config.text_encoder.max_words = 8
  config.data.update(
    sizes=latents(((2, 4, 4), (3, 3, 3), (4, 3, 2), (6, 2, 2))),
    records_per_size=128,
    classes=10,
    row_tokens=videos * tokens,
    row_words=videos * 8,
    row_samples=videos,
  )
  config.optimizer.update(learning_rate=6e-3, ema_decay=0.99)
  config.training.update(
    steps=600,
    batch_rows=16,
    log_every=10,
    checkpoint_every=300,
    sample_every=300,
    sample_prompts=("pattern 3", "pattern 7", ""),
    samples_per_prompt=2,
  )
  config.sizes.update(
    default=(4, 6, 4),
    ladder=((tokens, 8, 1), (videos * tokens, videos * 8, videos)),
    rows=4,
  )
