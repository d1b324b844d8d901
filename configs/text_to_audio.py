"""Text to audio: the Flag-DiT of Lumina-T2Audio on latents along time.

The published network (lumina_audio, FlagDiTv2; 198 M parameters) generates
latents of a mel spectrogram: 20 channels, 31.25 latents a second, 312 for ten
seconds. The original publishes no training code for it; the optimizer here is
that of text_to_image.py.

  python -m lumina_jax.train --config=configs/text_to_audio.py:tiny \\
    --workdir=runs/t2a
  python -m lumina_jax.infer --workdir=runs/t2a --prompt="pattern 7" \\
    --audio_length_in_s=0.5

Data are synthetic: a pattern along time under noise, with a caption that names
it; the embedded encoder encodes captions. No vocoder decodes latents yet:
samples are .npy files with a preview beside them, and calls return latents.
Only `tiny` was run, on a CPU.
"""

import dataclasses

from ml_collections import ConfigDict

from lumina_jax.backbone.config import PUBLISHED

MODELS = {
  "flag": dataclasses.replace(PUBLISHED["flag_dit_audio"], time_scale=1.0),
  "tiny": dataclasses.replace(
    PUBLISHED["flag_dit_audio"],
    channels=4,
    width=64,
    depth=2,
    heads=4,
    kv_heads=4,
    cond_width=64,
    text_width=64,
    ffn_multiple=32,
    time_scale=1.0,
    dtype="float32",
  ),
}

LENGTHS = (156, 234, 312)  # Latents: 5, 7.5 and 10 seconds.
RATE = 31.25  # Latents per second: 16 kHz / hop 256 / 2.
WORDS = 128  # Longest caption.


def get_config(variant: str = "flag") -> ConfigDict:
  """Variants: the names of `MODELS`."""
  if variant not in MODELS:
    raise ValueError(f"unknown variant {variant!r}: use one of {[*MODELS]}")
  model = MODELS[variant]
  config = ConfigDict()
  config.medium = "audio"
  config.seed = 0
  config.init_from = ""
  config.model = ConfigDict(dataclasses.asdict(model))
  config.text_encoder = ConfigDict(
    dict(width=model.text_width, byte_width=32, word_bytes=16, max_words=WORDS)
  )
  config.data = ConfigDict(
    dict(
      sizes=tuple((length,) for length in LENGTHS),
      records_per_size=10_240,
      classes=1000,
      caption="pattern {}",
      condition_dropout=0.1,
      signal=0.8,
      row_tokens=4 * 312,
      row_words=4 * WORDS,
      row_samples=8,
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
      clip=1.0,
      ema_decay=0.9999,
    )
  )
  config.training = ConfigDict(
    dict(
      steps=100_000,
      batch_rows=32,
      log_every=10,
      checkpoint_every=1000,
      keep_checkpoints=3,
      sample_every=5000,
      sample_prompts=("pattern 7", "pattern 42"),
      samples_per_prompt=2,
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=-1, fsdp=1, context=1, tensor=1,
      dcn_data=1, dcn_fsdp=1, dcn_context=1, dcn_tensor=1,
    )
  )  # fmt: skip
  config.sampling = sampling()
  config.sizes = sizes()
  if variant == "tiny":
    shrink(config)
  return config


def sampling() -> ConfigDict:
  """How to sample, in training and from the run."""
  return ConfigDict(
    dict(
      solver="euler",
      num_inference_steps=39,  # The original has 40 time points.
      guidance_scale=5.0,
      shift=1.0,
    )
  )


def sizes() -> ConfigDict:
  """Lengths to generate, and latents per second."""
  return ConfigDict(
    dict(
      default=(312,),
      rule="fixed",
      ladder=((312, WORDS, 1), (1248, 4 * WORDS, 4)),
      rows=4,
      rate=RATE,
    )
  )


def shrink(config: ConfigDict) -> None:
  """Up to half a second, ten patterns, 600 steps: a minute on a CPU."""
  config.text_encoder.max_words = 8
  config.data.update(
    sizes=((8,), (12,), (16,)),
    records_per_size=256,
    classes=10,
    row_tokens=64,
    row_words=64,
    row_samples=8,
  )
  config.optimizer.update(learning_rate=6e-3, ema_decay=0.99)
  config.training.update(
    steps=600,
    batch_rows=16,
    checkpoint_every=300,
    sample_every=300,
    sample_prompts=("pattern 3", "pattern 7", ""),
  )
  config.sizes.update(default=(16,), ladder=((16, 8, 1), (64, 32, 4)), rows=4)
