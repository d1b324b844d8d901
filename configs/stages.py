"""Text to images in stages, from 256 to 512 to 1024 pixels, on real images.

The recipe of Lumina-T2X (arXiv 2405.05945, section 2.3) with the values of the
original's launch scripts: each stage starts from the weights of the one before,
images of many shapes have about the same number of tokens, batches of 512
images are processed in microbatches that fit a GPU, and every stage has its own
seed. Here, rows have the same number of tokens in every stage: an image of 1024
pixels takes the place of four or sixteen smaller ones.

Encode the images first, with the language model of the network:

  python -m lumina_jax.encode --source=images --output=shards/256 \\
    --resolutions=256 --vae=stabilityai/sdxl-vae --text_encoder=google/gemma-2b
  python -m lumina_jax.train --config=configs/stages.py:next_2b_gqa_256 \\
    --workdir=runs/256
  python -m lumina_jax.train --config=configs/stages.py:next_2b_gqa_512 \\
    --workdir=runs/512 --config.init_from=runs/256

For flag_5b, use --text_encoder=meta-llama/Llama-2-7b-hf --hidden=last
--max_tokens=128 --add_eos. Only both stages of `tiny` were run, on a CPU, on
pixels of a folder of images.
"""

from ml_collections import ConfigDict

from configs import text_to_image
from lumina_jax.encoders.text_features import GEMMA, LLAMA

SIDES = 256, 512, 1024
MODELS = ("flag_5b", "next_2b", "next_2b_gqa")
# By stage: seed, microbatches, steps between checkpoints and between logs.
STAGES = {
  256: (0, 4, 20_000, 100),
  512: (2, 4, 20_000, 100),
  1024: (3, 8, 2_000, 10),
}
IMAGES = 512  # Images of a batch.
TINY = 16, 32  # Sides of the two stages of "tiny".


def get_config(variant: str = "next_2b_gqa_256") -> ConfigDict:
  """Variants: a name of `MODELS` and a side, or "tiny_16" and "tiny_32"."""
  name, _, side = variant.rpartition("_")
  known = [f"{model}_{stage}" for model in MODELS for stage in SIDES]
  known += [f"tiny_{stage}" for stage in TINY]
  if variant not in known:
    raise ValueError(f"unknown variant {variant!r}: use one of {known}")
  side = int(side)
  return tiny(side) if name == "tiny" else published(name, side)


def published(name: str, side: int) -> ConfigDict:
  """A stage of a published network, on encoded shards."""
  config = text_to_image.get_config(name)
  seed, microbatches, checkpoint_every, log_every = STAGES[side]
  flag = name == "flag_5b"
  width = config.text_encoder.width
  # The longest image of 1024 pixels; Flag-DiT ends lines with a token.
  tokens = 4224 if flag else 4096
  each = 17 * 256**2 // side**2 or 1
  config.seed = seed
  config.init_strict = True
  with config.unlocked():
    config.text_encoder = ConfigDict(
      dict(width=width, **(LLAMA if flag else GEMMA))
    )
  config.encoders = ConfigDict(
    dict(
      vae="stabilityai/sdxl-vae",
      text="meta-llama/Llama-2-7b-hf" if flag else "google/gemma-2b",
      tokenizer="",
      dtype="bfloat16",
    )
  )
  config.data = images(f"shards/{side}", side, tokens, 2048, each)
  config.training.update(
    batch_rows=IMAGES * side**2 // (16 * 256**2),
    microbatches=microbatches,
    checkpoint_every=checkpoint_every,
    log_every=log_every,
    sample_every=checkpoint_every,
    sample_prompts=("a snowman in a park", "a cup of coffee", ""),
  )
  config.sizes.update(
    default=(side // 8, side // 8),
    ladder=tuple(
      ((288 if flag else 256) * s**2 // 256**2, 256, 1)
      for s in (side, 2 * side)
    ),
  )
  return config


def tiny(side: int) -> ConfigDict:
  """A small Next-DiT on pixels of a folder, with the embedded text encoder."""
  config = text_to_image.get_config("tiny")
  config.init_strict = True
  config.model.channels = 3
  config.data = images("photographs", side, 256, 64, 1024 // side**2 or 1)
  config.training.update(
    steps=300,
    sample_prompts=("a flower", "a cup of coffee", ""),
    checkpoint_every=100,
    sample_every=300,
    microbatches=2,
  )
  tokens = side**2 // 4
  config.sizes.update(
    default=(side, side), ladder=((tokens, 8, 1), (4 * tokens, 32, 4))
  )
  return config


def images(
  source: str, side: int, tokens: int, words: int, each: int
) -> ConfigDict:
  """Images of about side x side pixels, at most `each` of them in a row."""
  return ConfigDict(
    dict(
      sources=(source,),
      weights=(),
      resolutions=(side,),
      max_aspect_ratio=4.0,
      bucket_choices=4,
      condition_dropout=0.1,
      flip=False,
      bad_limit=0.02,
      threads=2,
      workers=0,
      row_tokens=tokens,
      row_words=words,
      row_samples=each,
    )
  )
