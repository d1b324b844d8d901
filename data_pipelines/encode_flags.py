"""Flags of `data_pipelines.encode`."""

from __future__ import annotations

from absl import flags

from lumina_jax.encoders.frozen import CLEANING, HIDDEN, FrozenTextConfig

PATCH = 2  # Latents along the side of a token, of nearly every network.
PIXELS = 16  # of a token where pixels are stored: an autoencoder's 8, twice.


def define() -> None:
  """Defines all of them."""
  _define_pictures()
  _define_encoders()
  _define_work()


def _define_pictures() -> None:
  flags.DEFINE_string(
    "source",
    None,
    "Pictures with captions: a folder, a .yaml file or tfds:NAME; see "
    "data_pipelines.annotations.",
  )
  flags.DEFINE_list(
    "sides",
    [],
    "Sides in pixels, such as 256 or 256,512: crops are of all shapes with "
    "about as many pixels as these squares.",
  )
  flags.DEFINE_integer(
    "unit",
    0,
    "Pixels of a token, which sides are multiples of: the network's patch "
    f"times what the autoencoder shrinks by. 0 = {PATCH} times the latter, "
    f"{PIXELS} without one.",
  )
  flags.DEFINE_float("longest", 4.0, "The most that one side is of the other.")
  flags.DEFINE_integer(
    "choices", 4, "A crop has one of so many shapes that fit a picture best."
  )
  flags.DEFINE_bool("flip", False, "Swap left and right of every other crop.")
  flags.DEFINE_integer("channels", 3, "Of pixels: 3, or 1 for grey.")
  flags.DEFINE_integer("epochs", 1, "Crops of each picture.")
  flags.DEFINE_integer("seed", 0, "Of the crops.")


def _define_encoders() -> None:
  text = FrozenTextConfig(width=1)
  kinds = ("float32", "bfloat16")
  flags.DEFINE_string(
    "vae", None, "Folder or hub name of an autoencoder; without it, pixels."
  )
  flags.DEFINE_enum(
    "vae_dtype", "float32", kinds, "What the autoencoder computes in."
  )
  flags.DEFINE_string(
    "text_encoder",
    None,
    "Folder or hub name of a language model; without it, captions stay text.",
  )
  flags.DEFINE_string(
    "tokenizer", None, "Folder of the language model's tokenizer, if elsewhere."
  )
  flags.DEFINE_enum(
    "dtype", "bfloat16", kinds, "What the language model computes in."
  )
  flags.DEFINE_enum(
    "hidden", text.hidden, HIDDEN, "State of the language model to take."
  )
  flags.DEFINE_integer(
    "max_tokens", text.max_tokens, "Of a caption, at the most."
  )
  flags.DEFINE_bool("add_eos", text.add_eos, "End captions with a token.")
  flags.DEFINE_enum(
    "cleaning", text.cleaning, CLEANING, "What is done to captions first."
  )
  flags.DEFINE_string(
    "system_prompt", text.system_prompt, "Stands before each caption."
  )


def _define_work() -> None:
  flags.DEFINE_string("output", None, "Folder of the shards.")
  flags.DEFINE_integer("records_per_shard", 1000, "Pictures of a file.")
  flags.DEFINE_integer("batch_size", 8, "Pictures that are encoded at once.")
  flags.DEFINE_integer("threads", 4, "Threads that load pictures.")
  flags.DEFINE_integer("process_id", 0, "Number of this process, from 0.")
  flags.DEFINE_integer("num_processes", 1, "Processes that share the work.")
  flags.DEFINE_float("max_bad", 0.05, "Share of pictures that may be left out.")
  flags.DEFINE_bool("verify", False, "Compare the checksums of --output.")
