"""Flags of `lumina_jax.encode`, and checks of their values."""

import pathlib
from typing import Any

from absl import flags

from data_pipelines import shard_folder, write_shards
from lumina_jax.encoders.text_features import (
  CLEANING,
  HIDDEN,
  TextFeaturesConfig,
)

PATCH = 2  # Latents along a side of a token, in nearly every network.
PIXELS = 16  # Pixels along a side of a token: 2 latents of an autoencoder of 8.


def define() -> None:
  """Defines all flags."""
  _define_images()
  _define_encoders()
  _define_work()


def check(args: Any) -> None:
  """Validates the flags before the command reads or writes anything.

  Args:
    args: all flags.

  Raises:
    ValueError: if a flag is missing or out of range, naming it.
    OSError: if shards cannot be written to the output folder.
  """
  if not args.output:
    raise ValueError("name the folder of shards, --output=FOLDER")
  output = shard_folder.local_path(args.output)
  if args.verify:
    return
  if not args.source or not args.resolutions:
    raise ValueError(
      "name the images and the resolutions of their crops in pixels: "
      "--source=FOLDER --resolutions=256"
    )
  for side in args.resolutions:
    if not side.strip().isdecimal():
      values = ",".join(args.resolutions)
      raise ValueError(f"--resolutions={values}: {side!r} is not a number")
  write_shards.bad_counter(args.max_bad)
  write_shards.check_process(args.process_id, args.num_processes)
  _check_output(args, output)


def _check_output(args: Any, output: pathlib.Path) -> None:
  if output.exists() and not output.is_dir():
    raise NotADirectoryError(
      f"--output={args.output} is a file; name a folder for the shards"
    )
  source = pathlib.Path(args.source).expanduser().resolve()
  if not source.is_dir():
    return
  # Training takes a folder with shards for a folder of shards only.
  if output.resolve().is_relative_to(source):
    raise ValueError(
      f"--output={args.output} lies in --source={args.source}; keep shards "
      "apart from the images"
    )


def _define_images() -> None:
  flags.DEFINE_string(
    "source",
    None,
    "Images with captions: a folder, a .yaml file or tfds:NAME; see "
    "data_pipelines.annotations.",
  )
  flags.DEFINE_list(
    "resolutions",
    [],
    "Resolutions in pixels, such as 256 or 256,512: crops have all shapes with "
    "about as many pixels as these squares.",
  )
  flags.DEFINE_integer(
    "unit",
    0,
    "Pixels along a side of a token, which divide resolutions: the network's "
    f"patch size times the factor of the autoencoder. 0 = {PATCH} times the "
    f"latter, {PIXELS} without one.",
    lower_bound=0,
  )
  flags.DEFINE_float(
    "max_aspect_ratio", 4.0, "Largest ratio of the sides of a crop."
  )
  flags.DEFINE_integer(
    "bucket_choices",
    4,
    "A crop has one of this many shapes that fit its image best.",
    lower_bound=1,
  )
  flags.DEFINE_bool("flip", False, "Mirror every other crop.")
  flags.DEFINE_integer("channels", 3, "Channels of pixels: 3, or 1 for gray.")
  flags.DEFINE_integer(
    "epochs", 1, "Number of crops of each image.", lower_bound=1
  )
  flags.DEFINE_integer("seed", 0, "Seed of the crops.", lower_bound=0)


def _define_encoders() -> None:
  text = TextFeaturesConfig(width=1)
  dtypes = ("float32", "bfloat16")
  flags.DEFINE_string(
    "vae",
    None,
    "Folder or hub name of an autoencoder; without it, pixels are stored.",
  )
  flags.DEFINE_enum(
    "vae_dtype", "float32", dtypes, "Dtype of the autoencoder's computation."
  )
  flags.DEFINE_string(
    "text_encoder",
    None,
    "Folder or hub name of a language model; without it, text is stored.",
  )
  flags.DEFINE_string(
    "tokenizer", None, "Folder of the tokenizer, if not beside the model."
  )
  flags.DEFINE_enum(
    "dtype", "bfloat16", dtypes, "Dtype of the language model's computation."
  )
  flags.DEFINE_enum(
    "hidden", text.hidden, HIDDEN, "Hidden state of the language model to use."
  )
  flags.DEFINE_integer(
    "max_tokens", text.max_tokens, "Largest number of tokens of a caption."
  )
  flags.DEFINE_bool(
    "add_eos", text.add_eos, "Append an end-of-sequence token to captions."
  )
  flags.DEFINE_enum(
    "cleaning", text.cleaning, CLEANING, "How captions are cleaned."
  )
  flags.DEFINE_string(
    "system_prompt", text.system_prompt, "Text before each caption."
  )


def _define_work() -> None:
  flags.DEFINE_string("output", None, "Folder of the shards.")
  flags.DEFINE_integer(
    "records_per_shard", 1000, "Records of a shard.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch_size", 8, "Samples that are encoded at once.", lower_bound=1
  )
  flags.DEFINE_integer("threads", 4, "Threads that load images.", lower_bound=1)
  flags.DEFINE_integer("process_id", 0, "Number of this process, from 0.")
  flags.DEFINE_integer("num_processes", 1, "Processes that share the work.")
  flags.DEFINE_float("max_bad", 0.05, "Largest share of bad records.")
  flags.DEFINE_bool("verify", False, "Compare the checksums of --output.")
