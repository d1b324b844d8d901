"""Text to images in stages, from 256 to 512 to 1024 pixels, on real pictures.

The recipe of Lumina-T2X (arXiv 2405.05945, section 2.3) by the numbers of the
original's launch scripts: each stage begins with the weights of the one before,
pictures of many shapes have about as many tokens each, batches of 512 pictures
are taken in microbatches as large as a GPU held, and every stage has a seed of
its own. Here a row has the same number of tokens in every stage, so that a
picture of 1024 pixels takes the room of four or of sixteen smaller ones.

Pictures are encoded before, with the language model that the network reads:

  python -m lumina_jax.encode --source=pictures --output=shards/256 \\
    --resolutions=256 --vae=stabilityai/sdxl-vae --text_encoder=google/gemma-2b
  python -m lumina_jax.train --config=configs/stages.py:next_2b_gqa_256 \\
    --workdir=runs/256
  python -m lumina_jax.train --config=configs/stages.py:next_2b_gqa_512 \\
    --workdir=runs/512 --config.init_from=runs/256

(for flag_5b with --text_encoder=meta-llama/Llama-2-7b-hf --hidden=last
--max_tokens=128 --add_eos). Only `tiny`, on pixels of a folder of pictures, was
run: on a CPU, both stages. The published sizes are not run here.
"""

from ml_collections import ConfigDict

from configs import text_to_image
from lumina_jax.encoders.text_features import GEMMA, LLAMA

SIDES = 256, 512, 1024
MODELS = ("flag_5b", "next_2b", "next_2b_gqa")
# By stage: seed, microbatches, steps between checkpoints and between lines.
STAGES = {
  256: (0, 4, 20_000, 100),
  512: (2, 4, 20_000, 100),
  1024: (3, 8, 2_000, 10),
}
PICTURES = 512  # of a batch
TINY = 16, 32  # sides of its two stages


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
  """A stage of a published network, on shards."""
  config = text_to_image.get_config(name)
  seed, microbatches, checkpoints, lines = STAGES[side]
  flag = name == "flag_5b"
  width = config.text_encoder.width
  # The longest picture of 1024 pixels; Flag-DiT ends lines by a token.
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
  config.data = pictures(f"shards/{side}", side, tokens, 2048, each)
  config.training.update(
    batch_rows=PICTURES * side**2 // (16 * 256**2),
    microbatches=microbatches,
    checkpoint_every=checkpoints,
    log_every=lines,
    sample_every=checkpoints,
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
  config.data = pictures("photographs", side, 256, 64, 1024 // side**2 or 1)
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


def pictures(
  source: str, side: int, tokens: int, words: int, each: int
) -> ConfigDict:
  """Pictures of about side x side pixels, `each` of them to a row."""
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
